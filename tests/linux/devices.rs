//! A Debian on a disk, with every device, and a second guest on its segment.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use mkvmm_test_harness::{Scratch, Server};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

use crate::cuts;
use crate::launch::TIMEOUT;
use crate::shell::Shell;

const POOL: &str = "512M@4G";
/// The file name of the initramfs with the drivers of virtio.
pub const DRIVERS: &str = "root.cpio.gz";
/// The file name of the disk with a Debian.
pub const DEBIAN: &str = "rootfs.ext4";
/// The size of the file that is fetched: many of the longest frames.
const SIZE: usize = 3_000_000;
/// How much of it is printed on a console.
const PRINTED: usize = 16 << 10;

/// Serves the file to every client on the host's loopback, and returns the port.
fn serve(file: Vec<u8>) -> u16 {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("it has one").port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that has enough is no failure.
            let _ = answer(stream, &file);
        }
    });
    port
}

fn answer(mut stream: TcpStream, file: &[u8]) -> std::io::Result<()> {
    let mut request = BufReader::new(stream.try_clone()?);
    let mut line = String::new();
    while request.read_line(&mut line)? > 2 {
        line.clear();
    }
    write!(
        stream,
        "HTTP/1.0 200 OK\r\nContent-Length: {}\r\n\r\n",
        file.len()
    )?;
    stream.write_all(file)
}

/// Finds the passt that is a child of the server, or of its keeper.
fn find_passt() -> Pid {
    let processes = fs::read_dir("/proc").expect("processes").flatten();
    let is_passt = |pid: &i32| {
        let name = fs::read_to_string(format!("/proc/{pid}/comm"));
        name.is_ok_and(|name| name.starts_with("passt"))
    };
    let mut pids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    let pid = pids.find(is_passt).and_then(Pid::from_raw);
    pid.expect("there is a passt")
}

/// Returns a disk that the guest may write to: a copy, unless it is a disk of an
/// emulated host, which forgets what is written.
fn debian(images: &Path, scratch: &Scratch) -> PathBuf {
    let kept = images.join(DEBIAN);
    let kind = fs::metadata(&kept).expect("it was made").file_type();
    if kind.is_block_device() {
        return kept;
    }
    let copy = scratch.path(DEBIAN);
    let cp = Command::new("cp")
        .args(["--sparse=always", "--reflink=auto"])
        .args([&kept, &copy])
        .status();
    assert!(cp.expect("cp starts").success(), "{}", copy.display());
    copy
}

/// Creates and starts a guest.
fn start(server: &Server, name: &str, kernel: &Path, initramfs: &Path, more: &[&str]) {
    let (kernel, initramfs) = (
        kernel.display().to_string(),
        initramfs.display().to_string(),
    );
    let mut words = vec!["create", name, "--kernel", &kernel, "--initrd", &initramfs];
    words.extend(more);
    let created = server.command(words).timeout(TIMEOUT).finish();
    created.expect_code(0);
    server.ok(&format!("start {name}"));
}

/// A Debian boots from a disk to its logins; it fetches a file from the host and
/// copies it to another guest; it sees its devices, and its disk outlives power
/// cuts; and it goes on when its passt is gone.
pub fn a_debian_works_with_its_disks_networks_and_consoles(images: &Path) {
    let file: Vec<u8> = (0..SIZE)
        .map(|at| b'a' + u8::try_from(at / 7 % 26).expect("a letter"))
        .collect();
    let printed = String::from_utf8_lossy(&file[..PRINTED]).into_owned();
    let sum = format!("{:08x}", crc32fast::hash(&file));
    let port = serve(file);
    let scratch = Scratch::new();
    let root = debian(images, &scratch).display().to_string();
    let disk = cuts::Disk::new();
    let data = disk.as_ref().map(cuts::Disk::path);

    let server = Server::start_for(POOL, TIMEOUT * 2);
    let empty = server.json("pool show");
    let initramfs = images.join(DRIVERS);
    let mut web = vec!["--memory", "256M", "--consoles", "1", "--disk", &root];
    if let Some(data) = &data {
        web.extend(["--disk", data]);
    }
    web.extend(["--net", "passt", "--net", "pool:lan", "--rng"]);
    // Its disk has been made by a correct program, and is not checked first.
    web.extend([
        "--cmdline",
        "console=ttyS0 quiet net.ifnames=0 fsck.mode=skip",
    ]);
    start(
        &server,
        "web",
        &images.join("vmlinuz-6.1"),
        &initramfs,
        &web,
    );
    let mut web = Shell::log_in(&server, "web");
    let mut serial = server.command(["console", "web"]).timeout(TIMEOUT).spawn();
    serial.wait_until("a login", |c| c.stdout().contains("debian login: "));
    let db = ["--memory", "160M", "--net", "pool:lan"];
    let db = [&db[..], &["--cmdline", "console=ttyS0 quiet mkvmm.shell"]].concat();
    start(&server, "db", &images.join("vmlinuz-6.12"), &initramfs, &db);

    expect_functions(&server, &mut web);
    let text = web.run("hwclock; [ $? = 1 ] && ! ls /dev/rtc*");
    assert!(
        text.contains("Cannot access the Hardware Clock via any known method"),
        "{text}"
    );
    web.run("grep -q virtio_rng /sys/class/misc/hw_random/rng_current");
    web.run("findmnt -n -o SOURCE / | grep -x /dev/vda");

    web.run("until ip -4 addr show dev eth0 | grep ' 192.0.2.2/24 '; do sleep 0.5; done");
    web.run("grep -x 65520 /sys/class/net/eth0/mtu");
    web.run(&format!("curl -s -S -o /file http://192.0.2.1:{port}/file"));
    let text = web.run("gzip -1 </file | tail -c 8 | od -A n -t x4 -N 4");
    assert!(text.contains(&sum), "{sum}: {text}");
    let text = web.run(&format!("head -c {PRINTED} /file"));
    assert!(text.contains(&printed), "{text}");

    let mut db = Shell::of_initramfs(&server, "db");
    db.run("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up");
    web.run("ip addr add 10.0.0.1/24 dev eth1");
    web.run("ping -q -c 3 10.0.0.2 && ping -q -c 2 -s 60000 10.0.0.2");
    db.begin("nc -l -p 7000 >/copy");
    web.run("until bash -c 'cat /file >/dev/tcp/10.0.0.2/7000'; do sleep 0.2; done");
    db.end();
    let text = db.run("crc32 /copy");
    assert!(text.contains(&sum), "{sum}: {text}");

    if let Some(disk) = &disk {
        disk.lose_power(&mut web);
    }

    kill_process(find_passt(), Signal::KILL).expect("it is there");
    web.run("while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.2; done");
    let passt = address(&server, "passt");
    let down = |event: &Value| event["kind"] == "link-down" && event["instance"] == "web";
    // Told a second later, unless the guest has ended by then.
    let end = Instant::now() + TIMEOUT;
    let event = loop {
        if let Some(event) = server.events(0).into_iter().find(down) {
            break event;
        }
        assert!(Instant::now() < end, "it is told");
        thread::sleep(Duration::from_millis(100));
    };
    assert_eq!(event["address"], passt, "{event:#}");
    web.run("ping -q -c 2 10.0.0.2");

    web.begin("poweroff -f -f");
    let ended = server.wait_for_state_within(TIMEOUT, "web", "stopped");
    assert_eq!(ended["reason"], "poweroff", "{ended:#}");
    server.ok("kill db --force");
    for name in ["web", "db"] {
        server.ok(&format!("delete {name}"));
    }
    server.expect_audit();
    assert_eq!(server.json("pool show"), empty);
}

/// Returns the devices of the guest.
fn devices(server: &Server) -> Vec<Value> {
    let web = server.json("show web");
    web["devices"].as_array().cloned().expect("it has devices")
}

/// Returns the address of the device with that value.
fn address(server: &Server, value: &str) -> Value {
    let all = devices(server);
    let device = all.iter().find(|device| device["value"] == value);
    device.expect("it is there")["address"].clone()
}

/// `lspci -vv` lists each function with its BAR where `show` has it, with MSI-X
/// in use, and virtio's driver.
fn expect_functions(server: &Server, web: &mut Shell) {
    let text = web.run("lspci -vv").replace('\r', "");
    let functions: Vec<&str> = text.split("\n\n").collect();
    let all = devices(server);
    assert!(all.len() >= 5, "{all:?}");
    for device in all {
        let address = device["address"].as_str().expect("an address");
        let start = device["registers"]["start"].as_u64().expect("a number");
        let is_it = |text: &&&str| text.lines().any(|line| line.starts_with(address));
        let function = functions.iter().find(is_it);
        let function = function.unwrap_or_else(|| panic!("{address}: {text}"));
        for word in [
            format!("Memory at {start:x} (32-bit, non-prefetchable) [size=32K]"),
            "MSI-X: Enable+".to_owned(),
            "VirtIO: CommonCfg".to_owned(),
            "Kernel driver in use: virtio-pci".to_owned(),
        ] {
            assert!(function.contains(&word), "{address}: {word}: {function}");
        }
    }
}
