//! An ordinary browser through real tor, at the defaults of the profile `web`: for five minutes nothing is refused.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::indexing_slicing,
    reason = "a helper that fails is a test that fails"
)]

use std::{
    thread,
    time::{Duration, Instant},
};

use serde_json::Value;
use tunica_tests::{
    beside::Beside,
    browser::Tab,
    lab::Lab,
    site::{FONTS, NAME, PASSWORD, PICTURE_WIDTH, PICTURES, RESOURCES, SCRIPTS, STYLES, Site},
    testnet::{Backend, Client, Network, Profile, ServiceOptions},
};

/// Pages that the visitor clicks: five minutes of them.
const CLICKS: usize = 75;
/// From one click to the next.
const BETWEEN: Duration = Duration::from_secs(4);
/// How long a page is looked at that took longer: so no more than three pages are asked for within 10 s, however slow the machine
/// is at times.
const LOOK: Duration = Duration::from_secs(2);
/// The page with the form.
const LOGIN: usize = 10;

/// What the page's own scripts know of what it consists of.
const PAGE: &str = "(() => {
    const resources = performance.getEntriesByType('resource');
    const whole = entry => entry.responseStatus === 200 && entry.responseEnd > 0;
    return {
        status: performance.getEntriesByType('navigation')[0].responseStatus,
        resources: resources.length,
        whole: resources.filter(whole).length,
        scripts: window.ran,
        sheets: document.styleSheets.length,
        pictures: [...document.images].filter(image => image.complete).map(image => image.naturalWidth),
        title: document.title,
        who: document.getElementById('who').textContent,
    };
})()";

/// Whether a page is all there.
fn look(tab: &mut Tab, title: usize, who: &str) {
    let page = tab.evaluate(PAGE).unwrap();
    assert_eq!(page["title"], title.to_string(), "{page}");
    assert_eq!((page["status"].as_u64(), page["who"].as_str()), (Some(200), Some(who)), "{page}");
    for (what, count) in
        [("resources", RESOURCES), ("whole", RESOURCES), ("scripts", SCRIPTS), ("sheets", STYLES)]
    {
        assert_eq!(page[what], count, "{what} of {page}");
    }
    assert_eq!(page["pictures"].as_array().unwrap(), &vec![Value::from(PICTURE_WIDTH); PICTURES]);
}

/// The first page. A rendezvous that fails in so small a network is no fault of the ingress: other circuits are tried.
fn arrive(tab: &mut Tab, client: &Client, url: &str) {
    let mut error = String::new();
    for _ in 0..4 {
        match tab.go(url) {
            Ok(()) => return,
            Err(failure) => error = format!("{failure:#}"),
        }
        client.forget().unwrap();
    }
    panic!("{error}");
}

/// Sum of all series of a family.
fn sum(lab: &Lab, family: &str) -> f64 {
    let (_, text) = lab.http("/metrics").unwrap();
    let of_family = text.lines().filter(|line| {
        line.strip_prefix(family).is_some_and(|rest| rest.starts_with('{') || rest.starts_with(' '))
    });
    let values: Vec<f64> = of_family.map(|line| line.rsplit(' ').next().unwrap().parse().unwrap()).collect();
    assert!(!values.is_empty(), "no {family}");
    values.iter().sum()
}

/// Whether the daemon has just told of the browser's circuit, which then is one like any other, without a violation.
fn is_in_good_standing(lab: &Lab) -> bool {
    let answer = lab.json(&["circuits", "--limit", "100"]).unwrap();
    let rows = answer["digest"]["circuits"].as_array().unwrap();
    for row in rows {
        assert_eq!((row["state"].as_str(), row["violations"].as_u64()), (Some("normal"), Some(0)), "{row}");
    }
    !rows.is_empty()
}

#[test]
fn a_browser_that_clicks_for_five_minutes_is_refused_nothing() {
    let mut lab = Lab::new("browse").unwrap();
    // The private network, too, is on the protected host, whose loopback is the circuit gate's.
    let network = lab.host.run(|| Network::start(Profile::Usual)).unwrap();
    let site = lab.host.run(|| Site::start("127.0.0.1:10001".parse()?)).unwrap();
    let ingress = Backend::Tcp("127.0.0.1:10000".parse().unwrap());
    let service = lab.host.run(|| network.service(&ServiceOptions::new(80, ingress))).unwrap();
    let control = service.control_address().socket;
    // Addresses, limits, times and sizes are the defaults.
    lab.configure(
        "mode = \"enforce\"",
        &format!(
            "[tor]\ncontrol = \"unix:{}\"\n[ingress]\nenabled = true\n[circuits]\nprofile = \"web\"",
            control.display()
        ),
    )
    .unwrap();
    lab.start().unwrap();
    // Whatever else keeps this machine busy is no attack on the service.
    lab.must(&["threat", "set", "calm"]).unwrap();
    let _front = Beside::start_on_host(&lab).unwrap();
    for series in ["tunica_front_up", "tunica_tor_control_up", "tunica_gate_attached"] {
        lab.wait_for(series, |lab| Ok(lab.metric(series)? == Some(1.0))).unwrap();
    }
    lab.wait_for("the site", |lab| Ok(sum(lab, "tunica_front_backend_up") == 1.0)).unwrap();
    let client = lab.host.run(|| network.client()).unwrap();
    let mut tab = Tab::open(|program| lab.host.command(program), client.socks_port()).unwrap();

    arrive(&mut tab, &client, &format!("http://{}/", service.onion()));
    let (mut title, mut who) = (1, "");
    look(&mut tab, title, who);
    thread::sleep(BETWEEN);
    let mut seen = 0;
    for click in 1..=CLICKS {
        let clicked = Instant::now();
        if click == LOGIN {
            tab.enter("input[name=name]", NAME).unwrap();
            tab.enter("input[name=password]", PASSWORD).unwrap();
            tab.click("#login button").unwrap();
            (title, who) = (1, NAME);
        } else {
            tab.click("#next").unwrap();
            title += 1;
        }
        let loaded = Instant::now();
        look(&mut tab, title, who);
        seen += usize::from(is_in_good_standing(&lab));
        let next = (clicked + BETWEEN).max(loaded + LOOK);
        thread::sleep(next.saturating_duration_since(Instant::now()));
    }

    // As the browser saw it.
    let failed = tab.events("Network.loadingFailed");
    assert!(failed.is_empty(), "{failed:?}");
    let statuses = tab.events("Network.responseReceived");
    let other: Vec<_> =
        statuses.iter().filter(|event| event.pointer("/response/status") != Some(&200.into())).collect();
    assert!(other.is_empty(), "{other:?}");
    let pages = 1 + CLICKS;
    assert_eq!(statuses.len(), pages * (1 + RESOURCES));
    // As the service saw it: each once, and the form, which leads to a page.
    let asked = site.asked();
    assert_eq!(asked.len(), pages * (1 + RESOURCES) + 1);
    let fonts = asked.iter().filter(|asked| asked.path.contains("/woff2/")).count();
    assert_eq!(fonts, pages * FONTS);
    let odd: Vec<_> = asked.iter().filter(|asked| asked.status != 200).collect();
    assert!(matches!(odd.as_slice(), [form] if form.method == "POST" && form.status == 303), "{odd:?}");
    // As the ingress counted it.
    let requests = asked.len() as f64;
    lab.wait_for("the count", |lab| Ok(lab.metric("tunica_front_requests_total")? == Some(requests)))
        .unwrap();
    for family in [
        "tunica_front_would_refuse_total",
        "tunica_front_tarpitted",
        "tunica_front_puzzles_issued_total",
        "tunica_circuits_banned",
        "tunica_tor_circuits_closed_total",
    ] {
        assert_eq!(sum(&lab, family), 0.0, "{family}: {}", lab.must(&["circuits"]).unwrap());
    }
    // A request in the slow lane is served. Where pages come now faster, now slower, a few may be: requests are counted in
    // pieces of 2 s, and so for up to 12 s.
    let slow = lab.metric("tunica_front_refused_total{refusal=\"slow_lane\"}").unwrap().unwrap();
    let refused = sum(&lab, "tunica_front_refused_total") - slow;
    assert_eq!(refused, 0.0, "{}", lab.must(&["circuits"]).unwrap());
    assert_eq!(lab.metric("tunica_gate_segments_total{outcome=\"refused\"}").unwrap(), Some(0.0));
    assert!(seen >= CLICKS / 10, "the circuit was seen {seen} times");
}
