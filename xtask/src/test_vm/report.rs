//! What the guest says on its console, and whether that is what should be.

use super::Line;

/// What every line of the guest begins with; anything else is the firmware's or the kernel's.
const MARK: &str = "tunica-vm: ";

/// What a kernel that is too old must be told to need.
const REQUIREMENT: &str = "the shield needs Linux 6.1 or later";

/// What the guest said.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Report {
    release: Option<String>,
    capabilities: Option<String>,
    refused: Option<String>,
    instructions: Option<String>,
    rows: Option<String>,
    faults: Vec<String>,
    attached: Option<String>,
    counted: Vec<String>,
    handshakes: Option<String>,
    gate: Option<String>,
    errors: Vec<String>,
    has_ended: bool,
}

impl Report {
    /// Reads the console.
    pub(super) fn read(console: &str) -> Self {
        let mut report = Self::default();
        // The firmware's last words end without a line end, so the mark may stand further right.
        for line in console.lines().filter_map(|line| line.split_once(MARK).map(|(_, said)| said.trim())) {
            let (what, rest) = line.split_once(' ').unwrap_or((line, ""));
            let rest = rest.to_owned();
            match what {
                "release" => report.release = Some(rest),
                "capabilities" => report.capabilities = Some(rest),
                "refused" => report.refused = Some(rest),
                "instructions" => report.instructions = Some(rest),
                "rows" => report.rows = Some(rest),
                "fault" => report.faults.push(rest),
                "attached" => report.attached = Some(rest),
                "counted" => report.counted.push(rest),
                "handshakes" => report.handshakes = Some(rest),
                "gate" => report.gate = Some(rest),
                "error" => report.errors.push(rest),
                "end" => report.has_ended = true,
                _ => report.errors.push(format!("the guest said something unknown: {line}")),
            }
        }
        report
    }

    /// Everything that is not as it should be with a kernel of this line and release.
    pub(super) fn problems(&self, line: Line, release: &str) -> Vec<String> {
        let mut problems: Vec<String> = self.errors.clone();
        problems.extend(self.faults.iter().map(|fault| format!("a row failed: {fault}")));
        let mut demand = |is_so: bool, otherwise: String| {
            if !is_so {
                problems.push(otherwise);
            }
        };
        demand(
            self.release.as_deref() == Some(release),
            format!("the guest ran {:?}, not {release}", self.release),
        );
        demand(self.capabilities.is_some(), "the shield's process did not start".to_owned());
        if line.is_too_old() {
            let refused = self.refused.as_deref().unwrap_or_default();
            demand(
                refused.contains(REQUIREMENT),
                format!("the refusal does not say `{REQUIREMENT}`: {:?}", self.refused),
            );
        } else {
            demand(self.refused.is_none(), format!("refused: {:?}", self.refused));
            demand(
                self.rows.as_deref().and_then(|rows| rows.split_once(" of ")).is_some_and(|(passed, all)| {
                    passed == all && passed.parse::<u32>().is_ok_and(|passed| passed > 0)
                }),
                format!("rows passed: {:?}", self.rows),
            );
            demand(self.attached.as_deref() == Some("native"), format!("attached: {:?}", self.attached));
            demand(
                self.counted.len() > 1,
                format!("counters that moved with frames on the wire: {:?}", self.counted),
            );
            demand(
                self.handshakes.as_deref() == Some("attached"),
                format!("the program that counts handshakes: {:?}", self.handshakes),
            );
            let hook = line.gate_hook();
            demand(
                self.gate.as_deref().is_some_and(|gate| gate.split(',').next() == Some(hook)),
                format!("the circuit gate is not on {hook}: {:?}", self.gate),
            );
        }
        demand(self.has_ended, "the guest did not come to its end".to_owned());
        problems
    }

    /// One line of what was seen.
    pub(super) fn summary(&self) -> String {
        let release = self.release.as_deref().unwrap_or_default();
        if let Some(refused) = &self.refused {
            return format!("{release}: refused, as it must be: {refused}");
        }
        let mut summary = format!("{release}: rows passed {}", self.rows.as_deref().unwrap_or("none"));
        if let Some(attached) = &self.attached {
            summary.push_str(&format!(", attached {attached}"));
        }
        for counted in &self.counted {
            summary.push_str(&format!(", counted {counted}"));
        }
        if let Some(handshakes) = &self.handshakes {
            summary.push_str(&format!(", handshakes {handshakes}"));
        }
        if let Some(gate) = &self.gate {
            summary.push_str(&format!(", gate by {gate}"));
        }
        if let Some(instructions) = &self.instructions {
            summary.push_str(&format!(", verified {instructions} instructions"));
        }
        summary
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const RELEASE: &str = "6.1.0-56-cloud-amd64";
    const GOOD: &str = "Booting from ROM..tunica-vm: release 6.1.0-56-cloud-amd64\r\n\
        tunica-vm: capabilities 000000c000001000\r\ntunica-vm: instructions 4711\r\n[    1.2] something\r\n\
        tunica-vm: rows 200 of 200\r\ntunica-vm: attached native\r\ntunica-vm: counted syn_fin drop 32 of 32\r\n\
        tunica-vm: counted arp pass 32 of 32\r\ntunica-vm: handshakes attached\r\n\
        tunica-vm: gate clsact, 42 instructions\r\ntunica-vm: end \r\n";
    const REFUSED: &str = "tunica-vm: release 5.10.0-46-cloud-amd64\r\ntunica-vm: capabilities 000000c000001000\r\n\
        tunica-vm: refused the kernel refused the program; the shield needs Linux 6.1 or later; it said no\r\ntunica-vm: end \r\n";

    #[test]
    fn a_console_as_it_should_be_has_no_problem() {
        let report = Report::read(GOOD);
        assert_eq!(report.problems(Line::V6_1, RELEASE), [""; 0]);
        assert_eq!(
            report.summary(),
            "6.1.0-56-cloud-amd64: rows passed 200 of 200, attached native, counted syn_fin drop 32 of 32, \
             counted arp pass 32 of 32, handshakes attached, gate by clsact, 42 instructions, verified 4711 instructions"
        );
        assert_eq!(Report::read(REFUSED).problems(Line::V5_10, "5.10.0-46-cloud-amd64"), [""; 0]);
    }

    #[test]
    fn whatever_is_missing_or_wrong_is_a_problem() {
        for (from, to) in [
            ("6.1.0-56-cloud", "6.1.0-55-cloud"),
            ("200 of 200", "199 of 200"),
            ("200 of 200", "0 of 0"),
            ("tunica-vm: rows", "rows"),
            ("attached native", "attached generic"),
            ("tunica-vm: counted arp", "arp"),
            ("tunica-vm: handshakes", "handshakes"),
            ("tunica-vm: gate", "gate"),
            ("gate clsact", "gate tcx"),
            ("tunica-vm: capabilities", ""),
            ("instructions 4711", "fault plain: Pass, not Drop"),
            ("instructions 4711", "error gone"),
            ("instructions 4711", "unheard of"),
            ("instructions 4711", "refused no"),
            ("tunica-vm: end", ""),
        ] {
            let console = GOOD.replace(from, to);
            assert_ne!(console, GOOD);
            assert_ne!(Report::read(&console).problems(Line::V6_1, RELEASE), [""; 0], "{from} → {to}");
        }
        assert_ne!(Report::read("").problems(Line::V6_1, RELEASE), [""; 0]);
    }

    #[test]
    fn a_kernel_that_is_too_old_must_be_told_what_is_needed() {
        let release = "5.10.0-46-cloud-amd64";
        for (from, to) in [
            ("needs Linux 6.1 or later", "is unhappy"),
            ("tunica-vm: refused", "refused"),
            ("tunica-vm: end", ""),
        ] {
            let console = REFUSED.replace(from, to);
            assert_ne!(Report::read(&console).problems(Line::V5_10, release), [""; 0], "{from} → {to}");
        }
        let loaded = GOOD.replace("6.1.0-56", "5.10.0-46");
        assert_ne!(Report::read(&loaded).problems(Line::V5_10, release), [""; 0]);
    }
}
