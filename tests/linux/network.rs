//! Two guests with network devices: the host's network by passt, and a segment.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::Path;
use std::thread;

use mkvmm_test_harness::{Running, Server};
use rustix::process::{Pid, Signal, kill_process};

use crate::launch::TIMEOUT;

const POOL: &str = "512M@4G";
/// The file name of the initramfs with the drivers of virtio.
pub const DRIVERS: &str = "root.cpio.gz";
/// The size of the file that is fetched: many of the longest frames.
const SIZE: usize = 3_000_000;

/// A guest's console with a shell.
struct Shell {
    console: Running,
    commands: usize,
}

impl Shell {
    fn open(server: &Server, name: &str) -> Self {
        let words = ["console", name];
        let mut console = server.command(words).typed().timeout(TIMEOUT).spawn();
        console.wait_until("a shell", |c| c.stdout().contains("mkvmm-root: shell"));
        let commands = 0;
        Self { console, commands }
    }

    /// Begins a command. Its end is marked by a line that the shell computes, so
    /// that the echo of what is typed is not taken for it.
    fn begin(&mut self, command: &str) {
        self.commands += 1;
        let line = format!("{command}; echo end-$(({} + 0)):$?\n", self.commands);
        self.console.type_in(&line);
    }

    /// Waits for the end of the command, which must succeed; returns all output
    /// since the start of the guest.
    #[track_caller]
    fn end(&mut self) -> String {
        let mark = format!("end-{}:", self.commands);
        self.console.wait_until("the end of a command", |c| {
            let text = c.stdout();
            let rest = text.split_once(&mark);
            rest.is_some_and(|(_, rest)| rest.contains('\n'))
        });
        let text = self.console.stdout();
        assert!(text.contains(&format!("{mark}0")), "{text}");
        text
    }

    #[track_caller]
    fn run(&mut self, command: &str) -> String {
        self.begin(command);
        self.end()
    }
}

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

/// A guest fetches a file from the host, copies it to another guest, and goes on
/// when its passt is gone.
pub fn guests_reach_the_host_and_each_other(images: &Path) {
    let file: Vec<u8> = (0..SIZE)
        .map(|at| u8::try_from(at / 7 % 251).expect("below 251"))
        .collect();
    let sum = format!("{:08x}", crc32fast::hash(&file));
    let port = serve(file);
    let server = Server::start_for(POOL, TIMEOUT * 2);
    let empty = server.json("pool show");
    let initramfs = images.join(DRIVERS).display().to_string();
    let nets: [(&str, &str, &[&str]); 2] = [
        ("web", "6.1", &["--net", "passt", "--net", "pool:lan"]),
        ("db", "6.12", &["--net", "pool:lan"]),
    ];
    for (name, kernel, net) in nets {
        let kernel = images
            .join(format!("vmlinuz-{kernel}"))
            .display()
            .to_string();
        let mut words = vec!["create", name, "--memory", "160M", "--kernel", &kernel];
        words.extend(["--initrd", &initramfs]);
        words.extend(["--cmdline", "console=ttyS0 quiet mkvmm.shell"]);
        words.extend(net);
        server.run_words(words).expect_code(0);
        server.ok(&format!("start {name}"));
    }
    let mut web = Shell::open(&server, "web");
    let mut db = Shell::open(&server, "db");
    db.run("ip addr add 10.0.0.2/24 dev eth0 && ip link set eth0 up");

    web.run("ip link set eth0 up && udhcpc -n -q -i eth0 -s /bin/true");
    let text = web.run("cat /sys/class/net/eth0/mtu");
    assert!(text.contains("lease of 192.0.2.2 obtained"), "{text}");
    assert!(text.contains("\n65520"), "{text}");
    web.run("ip addr add 192.0.2.2/24 dev eth0 && ip route add default via 192.0.2.1");
    web.run(&format!("wget -q -O /file http://192.0.2.1:{port}/file"));
    let text = web.run("crc32 /file");
    assert!(text.contains(&sum), "{sum}: {text}");

    web.run("ip addr add 10.0.0.1/24 dev eth1 && ip link set eth1 up");
    web.run("ping -q -c 3 10.0.0.2 && ping -q -c 2 -s 60000 10.0.0.2");
    db.begin("nc -l -p 7000 >/copy");
    web.run("until nc 10.0.0.2 7000 </file; do sleep 0.2; done");
    db.end();
    let text = db.run("crc32 /copy");
    assert!(text.contains(&sum), "{sum}: {text}");

    kill_process(find_passt(), Signal::KILL).expect("it is there");
    web.run("while [ $(cat /sys/class/net/eth0/carrier) = 1 ]; do sleep 0.2; done");
    let down =
        |event: &serde_json::Value| event["kind"] == "link-down" && event["instance"] == "web";
    let events = server.events(0);
    let event = events.iter().find(|event| down(event));
    let event = event.expect("it is told");
    assert_eq!(event["address"], "00:01.0", "{event:#}");
    web.run("ping -q -c 2 10.0.0.2");

    for name in ["web", "db"] {
        server.ok(&format!("kill {name} --force"));
        server.ok(&format!("delete {name}"));
    }
    server.expect_audit();
    assert_eq!(server.json("pool show"), empty);
}
