//! The kernels that have their turn: in both forms, with Linux's own tools, and
//! starting their next kernel themselves.

use crate::guest::{Form, Guest};
use crate::kernels;
use crate::launch::Launch;
use crate::scenarios::Scenario;

/// A scenario for each kernel that has its turn.
pub fn scenarios() -> Vec<&'static Scenario> {
    let scenario = |kernel: &'static str| {
        let guests = [
            Guest::new("unpacked", kernel, 320).tools().cpus(2),
            Guest::new("itself", kernel, 384)
                .form(Form::InGuest)
                .end("poweroff"),
            Guest::new("again", kernel, 512).kexec(),
        ];
        // As long as the tests run, which is how long the program does.
        let scenario: &'static Scenario = Box::leak(Box::new(Scenario {
            name: Box::leak(format!("kernel_{kernel}").into_boxed_str()),
            pool: "1536M@0x100000000",
            holds: &[],
            guests: Box::leak(Box::new(guests)),
        }));
        scenario
    };
    kernels::in_turn().into_iter().map(scenario).collect()
}

/// What Linux's tools find, and what they do not: no clock and no DMI, which
/// they say at once; one serial port, which takes what is set; one bridge.
pub fn linuxs_tools_find_what_is_there_and_nothing_else(launch: &Launch) {
    for (guest, report) in launch.guests().filter(|(guest, _)| guest.tools) {
        let of = |tool: &str| {
            let lines = report.tools.iter();
            let lines = lines.filter_map(|line| line.strip_prefix(tool)?.strip_prefix(": "));
            lines.collect::<Vec<&str>>().join("\n")
        };
        let has = |tool: &str, text: &str| {
            let said = of(tool);
            assert!(said.contains(text), "{}: {tool}: {said}", guest.name);
        };
        has("hwclock -r", "No such file");
        has("rtcwake -m no -s 1", "No such file");
        has("dmidecode", "No SMBIOS nor DMI entry point found");
        // Nothing but the host bridge can be there.
        assert!(of("lspci -nn").lines().count() <= 1, "{:#?}", report.tools);
        has(
            "setserial -g /dev/ttyS0",
            "UART: 16550A, Port: 0x03f8, IRQ: 4",
        );
        // Set to 9600 and read back, then to 115200.
        assert_eq!(
            of("stty -F /dev/ttyS0 speed"),
            "9600\n115200",
            "{}",
            guest.name
        );
        // A file is a device. The one that can be there is KVM's own clock, on
        // hosts whose KVM can compare clocks (KVM_HC_CLOCK_PAIRING).
        for line in report.tools.iter().filter(|line| line.starts_with('/')) {
            let is_kvm_clock =
                line.starts_with("/sys/class/ptp/") && line.ends_with(":KVM virtual PTP");
            assert!(is_kvm_clock, "{}: {line}", guest.name);
        }
    }
}

/// A guest that loads its next kernel itself goes on in that one: the instance
/// has not ended, and nothing it does not own was touched.
pub fn a_guest_may_start_its_next_kernel_itself(launch: &Launch) {
    let mut all = launch.scenario.guests.iter();
    let Some(guest) = all.find(|guest| guest.kexec) else {
        return;
    };
    let (start, end) = kernels::release(guest.kernel);
    let is_release = |line: &str, before: &str| {
        let release = line.strip_prefix(before);
        release.is_some_and(|name| name.starts_with(&start) && name.ends_with(end))
    };
    let said = launch.said(guest);
    let before = |text: &str| said.iter().position(|line| is_release(line, text));
    let first = before("mkvmm-guest: kexec from ");
    let second = before("mkvmm-guest: uname ");
    assert!(first.is_some() && first < second, "{}", launch.run);
    let ended = launch.run.stderr.lines();
    let ended = ended.filter(|line| line.starts_with("mkvmm: again: stopped (reboot)"));
    assert_eq!(ended.count(), 1, "{}", launch.run);
}
