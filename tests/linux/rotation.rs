//! The kernels that have their turn: in both forms, with Linux's own tools, and
//! starting their next kernel themselves.

use crate::guest::{Form, Guest};
use crate::kernels;
use crate::launch::Launch;
use crate::scenarios::Scenario;

/// The functions that every guest has, in `lspci`'s words: address, class, vendor and
/// device of the host bridge and of the function for channels.
const FUNCTIONS: &str = "00:00.0 0600: 8086:1237\n00:1f.0 0500: 1af4:1110 (rev 01)";
/// What `lspci -xxx` says of the second one.
const SECOND: &str = "00:1f.0 Class 0500: Device 1af4:1110 (rev 01)";

/// The configuration space of the bridge, as `lspci -xxx` dumps it: vendor,
/// device and class, and zeros.
fn bridge_config() -> String {
    // Without Debian's list of names, which is a megabyte.
    let mut lines = vec!["00:00.0 Class 0600: Device 8086:1237".to_owned()];
    for row in (0..0x100).step_by(16) {
        let mut bytes = [0_u8; 16];
        if row == 0 {
            bytes[..4].copy_from_slice(&[0x86, 0x80, 0x37, 0x12]);
            bytes[10..12].copy_from_slice(&[0x00, 0x06]);
        }
        let bytes: Vec<String> = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
        lines.push(format!("{row:02x}: {}", bytes.join(" ")));
    }
    // A device ends with an empty line.
    lines.push(String::new());
    lines.join("\n")
}

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
/// they say at once; one serial port, which takes what is set; two functions.
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
        // Nothing but these is there, neither for Linux, which looks behind the
        // bridges that ACPI declares, nor at the ports themselves.
        for lspci in ["lspci -n", "lspci -A intel-conf1 -n"] {
            assert_eq!(of(lspci), FUNCTIONS, "{}: {lspci}", guest.name);
        }
        let config = of("lspci -xxx");
        let rest = config.strip_prefix(&bridge_config());
        let is_next = rest.is_some_and(|rest| rest.trim_start().starts_with(SECOND));
        assert!(is_next, "{}: {config}", guest.name);
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
