//! Two Linux guests that exchange messages over a channel, by a program that uses the
//! function for channels through `uio_pci_generic`.

use std::path::Path;

use mkvmm_test_harness::{Mkvmm, Scratch, Server};

use crate::devices::DRIVERS;
use crate::launch::TIMEOUT;
use crate::shell::Shell;

const POOL: &str = "384M@4G";
/// The size of the channel area, which is the function's third BAR.
const AREA: u64 = 8 << 20;
/// The file name of the archive with the program.
pub const CHANNELS: &str = "channels.cpio.gz";
/// The messages of the sender that is not killed.
const LAST: u64 = 300;

fn create(server: &Server, name: &str, kernel: &str, images: &Path) {
    let path = |file: &str| images.join(file).display().to_string();
    let (kernel, drivers, channels) = (path(kernel), path(DRIVERS), path(CHANNELS));
    let words = ["create", name, "--memory", "128M", "--net", "pool:lan"];
    let words = [&words[..], &["--kernel", &kernel]].concat();
    let images = ["--initrd", &drivers, "--initrd", &channels];
    let cmdline = ["--cmdline", "console=ttyS0 quiet mkvmm.shell"];
    let words = [&words[..], &images, &cmdline].concat();
    let created = server.command(words).timeout(TIMEOUT).finish();
    created.expect_code(0);
}

/// Starts a guest, and binds its function.
fn start(server: &Server, name: &str) -> Shell {
    server.ok(&format!("start {name}"));
    let mut shell = Shell::of_initramfs(server, name);
    shell.run("sh /channels/bind");
    shell
}

/// Measures the ring and, in the same guests, their network.
fn measure(a: &mut Shell, b: &mut Shell) {
    let line = |text: &str, key: &str| {
        let (_, rest) = text.rsplit_once(key).expect("it is told");
        let line = rest.lines().next().unwrap_or_default();
        println!("{key}{line}");
    };
    b.begin("/channels/uio echo");
    line(&a.run("/channels/uio ping 300"), "uio: round trip");
    b.end();
    b.begin("/channels/uio drain");
    a.run("/channels/uio flood 64");
    let text = b.end();
    line(&text, "uio: drained");
    line(&text, "uio: memcpy");
    for (shell, address) in [(&mut *a, "10.0.0.1"), (&mut *b, "10.0.0.2")] {
        shell.run(&format!(
            "ip addr add {address}/24 dev eth0 && ip link set eth0 up"
        ));
    }
    let text = a.run("ping -c 100 -i 0.02 10.0.0.2 || ping -c 20 10.0.0.2");
    let times = text.lines().filter_map(|line| {
        let (_, rest) = line.split_once("time=")?;
        rest.split(' ').next()?.parse::<f64>().ok()
    });
    let mut times: Vec<f64> = times.collect();
    times.sort_by(f64::total_cmp);
    let median = times.get(times.len() / 2).expect("times");
    let most = times.last().expect("times");
    println!(
        "virtio-net: round trip {median} ms, most {most} ms of {}",
        times.len()
    );
    b.begin("nc -l -p 7 >/dev/null");
    a.run("sleep 1");
    let send = "dd if=/dev/zero bs=16k count=1024 | nc 10.0.0.2 7";
    let clock = "$(cut -d' ' -f1 /proc/uptime)";
    let text = a.run(&format!("echo from {clock}; {send}; echo until {clock}"));
    b.end();
    let time = |key: &str| -> f64 {
        let (_, rest) = text.rsplit_once(key).expect("a time");
        let number = rest.split_whitespace().next().unwrap_or_default();
        number.parse().expect("a number")
    };
    let seconds = time("until ") - time("from ");
    println!("virtio-net: 16 MiB in {seconds:.2} s");
}

/// Two guests with different kernels exchange messages; the sender is killed while it
/// sends and comes back; the receiver sees both, and each message once.
pub fn two_guests_talk_by_uio_and_one_is_killed_and_comes_back(images: &Path) {
    let area = AREA.to_string();
    let with_area = |serve: Mkvmm| serve.arg("--channel-area").arg(&area);
    let server = Server::start_in(Scratch::new(), with_area, POOL, TIMEOUT * 2);
    let area = server.json("pool show")["channel_area"]["start"].as_u64();
    let area = area.expect("an address");
    // So that the channel is not where the area begins.
    server.ok("channel create other --size 64K --between x,y");
    server.ok("channel create ab --size 1M --between a,b");
    create(&server, "a", "vmlinuz-6.1", images);
    create(&server, "b", "vmlinuz-6.12", images);
    let mut a = start(&server, "a");
    let mut b = start(&server, "b");
    // Linux has left the BAR where it was, and the program maps it.
    let bar = format!("{area:#018x} {:#018x} ", area + AREA - 1);
    let function = "/sys/bus/pci/devices/0000:00:1f.0";
    for shell in [&mut a, &mut b] {
        shell.run(&format!("sed -n 3p {function}/resource | grep '^{bar}'"));
        let line = format!("{area:x}-{:x} : 0000:00:1f.0", area + AREA - 1);
        shell.run(&format!("grep '{line}' /proc/iomem"));
    }
    b.begin("/channels/uio receive");
    // Until it is killed, with pauses in which the receiver sleeps.
    a.begin("/channels/uio send 1000000 2");
    b.wait_until("messages", |text| text.contains("uio: received 200"));
    server.ok("kill a --force");
    drop(a);
    let gone = "uio: member 0 is absent, boot 1";
    b.wait_until("the death", |text| text.contains(gone));
    server.ok("delete a");
    create(&server, "a", "vmlinuz-6.1", images);
    let mut a = start(&server, "a");
    let back = "uio: member 0 is present, boot 2";
    b.wait_until("the return", |text| text.contains(back));
    // As quickly as it can, so that it waits for room.
    let sent = a.run(&format!("/channels/uio send {LAST}"));
    let text = b.end();
    let number = |text: &str, key: &str| -> u64 {
        let (_, rest) = text.rsplit_once(key).expect("it is told");
        let digits = rest.split(|c: char| !c.is_ascii_digit()).next();
        digits.and_then(|it| it.parse().ok()).expect("a number")
    };
    assert_eq!(number(&sent, "uio: producer "), 2, "{sent}");
    let up_to = number(&sent, "uio: sent up to ");
    assert_eq!(number(&sent, " from ") + LAST, up_to, "{sent}");
    let (_, end) = text.rsplit_once("uio: received ").expect("it is told");
    assert!(
        end.starts_with(&format!("{up_to} in all, lost 0")),
        "{up_to}: {text}"
    );
    measure(&mut a, &mut b);
    // Doorbells came by the line, of which each guest's kernel counts more than one.
    for shell in [&mut a, &mut b] {
        shell.run("[ $(awk '/uio_pci_generic/ { print $2 }' /proc/interrupts) -gt 1 ]");
    }
    for name in ["a", "b"] {
        server.ok(&format!("kill {name} --force"));
        let instance = server.json(&format!("show {name}"));
        assert_eq!(instance["violations"], 0, "{instance:#}");
        server.ok(&format!("delete {name}"));
    }
    server.ok("channel delete ab");
    server.ok("channel delete other");
    server.expect_audit();
    server.tear_down();
}
