//! Links between pages: none leads nowhere, and every file of `docs` is linked from some page.

use std::collections::BTreeSet;

/// Every dead link of `pages` (path and text), and every file below `docs/` that no other page links to.
pub(super) fn problems(files: &[String], pages: &[(&str, String)]) -> Vec<String> {
    let mut problems = Vec::new();
    let mut linked = BTreeSet::new();
    for (page, text) in pages {
        for target in targets(text) {
            let resolved = resolve(page, target);
            let is_folder = files.iter().any(|file| file.starts_with(&format!("{resolved}/")));
            if !files.contains(&resolved) && !is_folder && !resolved.is_empty() {
                problems.push(format!("{page}: links to {target}, which does not exist"));
            }
            if resolved != *page {
                linked.insert(resolved);
            }
        }
    }
    let unlinked = files.iter().filter(|file| file.starts_with("docs/") && !linked.contains(*file));
    problems.extend(unlinked.map(|file| format!("{file}: no page links to it")));
    problems
}

/// Where the links of a Markdown text lead within the tree, without anchors.
fn targets(text: &str) -> Vec<&str> {
    let mut found = Vec::new();
    // What stands in a fenced block is an example, not a link.
    let blocks = text.split("\n```").step_by(2);
    for block in blocks {
        for (opening, closing) in [("](", ')'), ("src=\"", '"'), ("href=\"", '"')] {
            let behind = block.split(opening).skip(1);
            found.extend(behind.filter_map(|rest| rest.split(closing).next()));
        }
    }
    let within = |target: &&str| !target.contains("://") && !target.starts_with("mailto:");
    let path = |target: &'_ str| -> usize { target.find(['#', ' ', '?']).unwrap_or(target.len()) };
    found
        .into_iter()
        .filter(within)
        .filter_map(|target| target.split_at_checked(path(target)).map(|(path, _)| path))
        .filter(|target| !target.is_empty())
        .collect()
}

/// The path from the root of what `page` names as `target`.
fn resolve(page: &str, target: &str) -> String {
    let mut parts: Vec<&str> = page.split('/').collect();
    parts.pop();
    for part in target.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            name => parts.push(name),
        }
    }
    parts.join("/")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(readme: &str) -> Vec<String> {
        let files = ["README.md", "docs/guide.md", "docs/chart.svg"].map(str::to_owned);
        let guide =
            "[self](guide.md) [up](../README.md#start) [out](https://tunica.example/docs/x)".to_owned();
        problems(&files, &[("README.md", readme.to_owned()), ("docs/guide.md", guide)])
    }

    #[test]
    fn linked_pages_and_pictures_are_in_order() {
        assert_eq!(check("[guide](docs/guide.md#top) <img src=\"docs/chart.svg\"> [all](docs/)"), [""; 0]);
    }

    #[test]
    fn a_page_that_only_links_to_itself_is_lost() {
        assert_eq!(check("![chart](docs/chart.svg)"), ["docs/guide.md: no page links to it"]);
    }

    #[test]
    fn a_dead_link_is_named_and_an_example_is_none() {
        let readme = "[g](docs/guide.md) ![c](docs/chart.svg) [x](docs/x.md)\n```\n[y](docs/y.md)\n```\n";
        assert_eq!(check(readme), ["README.md: links to docs/x.md, which does not exist"]);
    }
}
