//! Processor time that a hypervisor gave to others while something was measured here.

use std::fs;

/// Of all processors together since the boot, in clock ticks, as the first line of `/proc/stat` counts it (proc_stat(5)).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ProcessorTime {
    used: u64,
    stolen: u64,
}

impl ProcessorTime {
    /// Until now; nothing where the kernel does not say.
    pub fn now() -> Self {
        Self::parse(&fs::read_to_string("/proc/stat").unwrap_or_default())
    }

    fn parse(text: &str) -> Self {
        let fields = text.lines().next().unwrap_or_default().split_whitespace().skip(1);
        // user, nice, system, idle, iowait, irq, softirq, steal; the guests' time is in the first two already.
        let mut time = Self::default();
        for (place, ticks) in fields.map_while(|field| field.parse::<u64>().ok()).enumerate() {
            match place {
                0..=2 | 5 | 6 => time.used = time.used.saturating_add(ticks),
                7 => time.stolen = ticks,
                _ => {}
            }
        }
        time
    }

    /// What stands behind a machine's kind where others had a hundredth or more of the time that it asked for since `before`.
    pub fn clause_since(self, before: Self) -> String {
        let stolen = self.stolen.saturating_sub(before.stolen);
        let asked = self.used.saturating_sub(before.used).saturating_add(stolen);
        match stolen.saturating_mul(100).checked_div(asked) {
            None | Some(0) => String::new(),
            Some(percent) => format!(
                ", while a hypervisor gave {percent} % of the processor time that the machine asked for to others, which \
                 slows some visits"
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_others_had_is_told_from_a_hundredth_on() {
        let at = |line: &str| ProcessorTime::parse(&format!("{line}\ncpu0 9 9 9 9 9 9 9 9 9 9\n"));
        let before = at("cpu  100 0 50 4000 7 0 50 10 30 0");
        assert_eq!(before, ProcessorTime { used: 200, stolen: 10 });
        let clause = |line: &str| at(line).clause_since(before);
        assert!(clause("cpu  160 5 60 9000 9 5 60 30 30 0").contains(" gave 18 % "));
        assert_eq!(clause("cpu  1100 0 50 9000 9 0 50 11 30 0"), "");
        assert_eq!(clause("cpu  100 0 50 9000 9 0 50 10 30 0"), "");
        assert_eq!(ProcessorTime::parse(""), ProcessorTime::default());
    }

    #[test]
    fn this_kernel_says_it() {
        assert!(ProcessorTime::now().used > 0);
    }
}
