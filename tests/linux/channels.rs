//! Two Linux guests that exchange messages over a channel, by a program that uses the
//! function for channels through `uio_pci_generic`.

use std::path::Path;

use mkvmm_test_harness::Server;

use crate::devices::DRIVERS;
use crate::launch::TIMEOUT;
use crate::shell::Shell;

const POOL: &str = "384M@4G";
/// The file name of the archive with the program.
pub const CHANNELS: &str = "channels.cpio.gz";
/// The messages of the sender that is not killed.
const LAST: u64 = 300;

fn create(server: &Server, name: &str, kernel: &str, images: &Path) {
    let path = |file: &str| images.join(file).display().to_string();
    let (kernel, drivers, channels) = (path(kernel), path(DRIVERS), path(CHANNELS));
    let words = ["create", name, "--memory", "128M", "--kernel", &kernel];
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

/// Two guests with different kernels exchange messages; the sender is killed while it
/// sends and comes back; the receiver sees both, and each message once.
pub fn two_guests_talk_by_uio_and_one_is_killed_and_comes_back(images: &Path) {
    let server = Server::start_for(POOL, TIMEOUT * 2);
    server.ok("channel create ab --size 64K --between a,b");
    create(&server, "a", "vmlinuz-6.1", images);
    create(&server, "b", "vmlinuz-6.12", images);
    let mut a = start(&server, "a");
    let mut b = start(&server, "b");
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
    server.expect_audit();
    server.tear_down();
}
