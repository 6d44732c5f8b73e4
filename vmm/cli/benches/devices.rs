//! Devices of a Linux guest, beside those of QEMU with the same kernel.
//!
//! Both guests are up at once, each with a shell on its serial port, and take turns:
//! a row is measured in one, and at once in the other. The guest measures with its own
//! clock, so that what is typed does not count.
//!
//! Not a criterion benchmark: what is measured happens in other machines.
//! `scripts/bench devices` calls it, inside an emulated host if this one's KVM cannot
//! run an unmodified Linux; `MKVMM_BIN` names another binary than this tree's.

mod entry;
mod served;

use std::fs::{self, File, Permissions};
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, ExitCode, Stdio};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use served::{Result, Server, binary, command};

/// The size of each disk. It is a file in memory, since what is measured is the
/// device.
const DISK: u64 = 64 << 20;
/// Memory of each guest.
const MEMORY: u64 = 256 << 20;
/// The time limit of every step, which may run in an emulated guest of an emulated
/// host.
const LIMIT: Duration = Duration::from_secs(300);
/// The address that passt takes from an emulated host, and the one by which a guest
/// reaches the host.
const GUEST: &str = "192.0.2.2/24";
const HOST: &str = "192.0.2.1";
/// The number of bytes that each TCP connection moves.
const SENT: usize = 16 << 20;
/// The number of bytes that a guest prints on its virtio-console.
const PRINTED: usize = 256 << 10;
const ROUNDS: usize = 5;

/// One row of the table.
struct Row {
    name: &'static str,
    /// What the guest's shell runs. `{out}` stands for the port of the host's server.
    command: &'static str,
    /// What that moves, in units.
    amount: f64,
    unit: &'static str,
}

const fn row(name: &'static str, amount: f64, unit: &'static str, command: &'static str) -> Row {
    Row {
        name,
        command,
        amount,
        unit,
    }
}

const ROWS: [Row; 8] = [
    row(
        "disk, read, 1 MiB at a time",
        64.0,
        "MiB/s",
        "dd if=/dev/vda of=/dev/null bs=1M count=64 iflag=direct",
    ),
    row(
        "disk, write, 1 MiB at a time",
        64.0,
        "MiB/s",
        "dd if=/dev/zero of=/dev/vda bs=1M count=64 oflag=direct",
    ),
    row(
        "disk, read, 4 KiB at a time",
        1000.0,
        "op/s",
        "dd if=/dev/vda of=/dev/null bs=4k count=1000 iflag=direct",
    ),
    row(
        "disk, write, 4 KiB at a time",
        1000.0,
        "op/s",
        "dd if=/dev/zero of=/dev/vda bs=4k count=1000 oflag=direct",
    ),
    row(
        "disk, read, 4 KiB, four programs",
        2000.0,
        "op/s",
        "for i in 1 2 3 4; do dd if=/dev/vda of=/dev/null bs=4k count=500 skip=$((i * 1000)) iflag=direct & done; wait",
    ),
    row(
        "passt, TCP from the host",
        16.0,
        "MiB/s",
        "nc 192.0.2.1 {out} </dev/hvc0 >/dev/null",
    ),
    row(
        "virtio-console, output",
        256.0,
        "KiB/s",
        "head -c 262144 /dev/zero | tr '\\000' x >/dev/hvc0",
    ),
    row(
        "serial port, output",
        4.0,
        "KiB/s",
        "head -c 4096 /dev/zero | tr '\\000' y >/dev/ttyS0",
    ),
];

fn main() -> ExitCode {
    entry::run("devices", |words| match words {
        [kernel, initramfs] => compare(Path::new(kernel), Path::new(initramfs)),
        _ => Err("say KERNEL INITRAMFS, as scripts/bench devices does".into()),
    })
}

/// Starts both guests, and prints the table.
fn compare(kernel: &Path, initramfs: &Path) -> Result<()> {
    let directory = scratch()?;
    let source = serve()?;
    let mut ours = Ours::start(&directory.0, kernel, initramfs)?;
    let mut qemu = Qemu::start(&directory.0, kernel, initramfs)?;
    for shell in [&mut ours.shell, &mut qemu.shell] {
        shell.wait_for("mkvmm-root: shell", 1)?;
        shell.insist(&format!(
            "ip addr add {GUEST} dev eth0; ip link set eth0 up"
        ))?;
        // The first packets wait for the neighbour's address.
        shell.insist(&format!(
            "until nc {HOST} {source} </dev/hvc0 >/dev/null; do sleep 1; done"
        ))?;
    }
    println!(
        "{:34} {:>8} {:>21} {:>21} {:>7}",
        "", "", "mkvmm", "QEMU", "ratio"
    );
    for row in &ROWS {
        let line = row.command.replace("{out}", &source.to_string());
        let mut rates = [Vec::new(), Vec::new()];
        for round in 0..ROUNDS {
            // Whoever is second finds warmer caches of the host: each is half of the time.
            for which in [round % 2, (round + 1) % 2] {
                let (shell, console) = match which {
                    0 => (&mut ours.shell, &ours.console),
                    _ => (&mut qemu.shell, &qemu.console),
                };
                let before = console.count(b'x');
                let Some(took) = shell.run(&line)? else {
                    continue;
                };
                if row.command.contains(">/dev/hvc0") {
                    console.wait_until("all that was printed", |c| {
                        count(c, b'x') >= before + PRINTED
                    })?;
                }
                rates[which].push(row.amount / took);
            }
        }
        let failed = rates.each_ref().map(|rates| ROUNDS - rates.len());
        let [(ours, ours_range), (qemu, qemu_range)] = rates.map(summary);
        println!(
            "{:34} {:>8} {ours:>8.1} {ours_range:>12} {qemu:>8.1} {qemu_range:>12} {:>6.2}x",
            row.name,
            row.unit,
            ours / qemu
        );
        if failed != [0, 0] {
            let [ours, qemu] = failed;
            println!("    of {ROUNDS} rounds failed with mkvmm: {ours}, with QEMU: {qemu}");
        }
    }
    ours.server.end()?;
    Ok(())
}

/// Returns the median, and the text of the quartiles; no number if there is none.
fn summary(mut rates: Vec<f64>) -> (f64, String) {
    if rates.is_empty() {
        return (f64::NAN, "failed".to_owned());
    }
    rates.sort_by(f64::total_cmp);
    let at = |quarter: usize| rates[(rates.len() - 1) * quarter / 4];
    (at(2), format!("{:.1}..{:.1}", at(1), at(3)))
}

fn count(bytes: &[u8], byte: u8) -> usize {
    bytes.iter().filter(|&&b| b == byte).count()
}

/// A directory in memory that is removed in the end.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What is left does no harm.
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn scratch() -> Result<Scratch> {
    let path = PathBuf::from(format!("/dev/shm/mkvmm-bench-{}", std::process::id()));
    fs::create_dir(&path)?;
    // passt has a user of its own, and makes its socket there.
    fs::set_permissions(&path, Permissions::from_mode(0o777))?;
    Ok(Scratch(path))
}

/// Makes a disk whose pages are all there.
fn disk(path: &Path) -> Result<()> {
    let mut file = File::create(path)?;
    io::copy(&mut io::repeat(0x5a).take(DISK), &mut file)?;
    Ok(())
}

/// Sends to every client on the host's loopback; the port. There is no row for the
/// other direction: with the passt of Debian 12, connections to the host were reset
/// after 16 MiB in nine of ten rounds, with QEMU as well.
fn serve() -> Result<u16> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // A client that has gone is missed by nobody.
            let _ = send(stream);
        }
    });
    Ok(port)
}

fn send(mut stream: TcpStream) -> io::Result<()> {
    stream.write_all(&vec![b'a'; SENT])?;
    stream.shutdown(Shutdown::Write)?;
    io::copy(&mut stream, &mut io::sink()).map(drop)
}

/// What was read so far of a stream that a thread reads.
#[derive(Clone, Default)]
struct Output(Arc<(Mutex<Vec<u8>>, Condvar)>);

impl Output {
    fn of(mut stream: impl Read + Send + 'static) -> Self {
        let output = Self::default();
        let ours = output.clone();
        thread::spawn(move || {
            let mut buffer = vec![0; 64 << 10];
            while let Ok(read @ 1..) = stream.read(&mut buffer) {
                let (bytes, changed) = &*ours.0;
                let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
                bytes.extend_from_slice(&buffer[..read]);
                changed.notify_all();
            }
        });
        output
    }

    fn count(&self, byte: u8) -> usize {
        count(
            &self.0.0.lock().unwrap_or_else(PoisonError::into_inner),
            byte,
        )
    }

    /// Waits until `happened` with all that was read; what that is.
    fn wait_until(&self, what: &str, happened: impl Fn(&[u8]) -> bool) -> Result<Vec<u8>> {
        let end = Instant::now() + LIMIT;
        let (bytes, changed) = &*self.0;
        let mut bytes = bytes.lock().unwrap_or_else(PoisonError::into_inner);
        while !happened(&bytes) {
            let left = end.saturating_duration_since(Instant::now());
            if left.is_zero() {
                let last = &bytes[bytes.len().saturating_sub(2000)..];
                return Err(format!("no {what}: {}", String::from_utf8_lossy(last)).into());
            }
            let waited = changed.wait_timeout(bytes, left);
            bytes = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(bytes.clone())
    }
}

/// A shell on the serial port of a guest.
struct Shell {
    input: ChildStdin,
    output: Output,
    commands: usize,
}

impl Shell {
    fn of(process: &mut Child) -> Result<Self> {
        let output = Output::of(process.stdout.take().ok_or("no output")?);
        let input = process.stdin.take().ok_or("no input")?;
        Ok(Self {
            input,
            output,
            commands: 0,
        })
    }

    /// Waits until `text` was printed `times` times; what follows it.
    fn wait_for(&self, text: &str, times: usize) -> Result<String> {
        let rest = |bytes: &[u8]| {
            let all = String::from_utf8_lossy(bytes).into_owned();
            let rest = all.splitn(times + 1, text).nth(times).map(str::to_owned);
            rest.filter(|rest| rest.contains('\n'))
        };
        let bytes = self
            .output
            .wait_until(text, |bytes| rest(bytes).is_some())?;
        Ok(rest(&bytes).unwrap_or_default())
    }

    /// Runs a command that must succeed.
    fn insist(&mut self, command: &str) -> Result<()> {
        let took = self.run(command)?;
        took.map(drop)
            .ok_or_else(|| format!("it failed: {command}").into())
    }

    /// Runs a command; the seconds it took by the guest's clock, if it succeeded.
    fn run(&mut self, command: &str) -> Result<Option<f64>> {
        self.commands += 1;
        let number = self.commands;
        // The shell computes the mark's number, so that its echo is not taken for it.
        let line = format!(
            "read a _ </proc/uptime; {{ {command}; }} 2>/dev/null; s=$?; read b _ </proc/uptime; echo took-$(({number} + 0)) $s $a $b\n"
        );
        self.input.write_all(line.as_bytes())?;
        self.input.flush()?;
        let text = self.wait_for(&format!("took-{number} "), 1)?;
        let words: Vec<&str> = text.split_whitespace().take(3).collect();
        match words[..] {
            ["0", begin, end] => Ok(Some(end.parse::<f64>()? - begin.parse::<f64>()?)),
            [_, _, _] => Ok(None),
            _ => Err(format!("{command}: {words:?}").into()),
        }
    }
}

/// A process that is killed in the end.
struct Process(Child);

impl Process {
    /// Starts it with pipes for input and output.
    fn spawn(command: &mut Command) -> Result<Self> {
        let command = command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let spawned = command.spawn();
        let name = command.get_program().display();
        Ok(Self(spawned.map_err(|error| format!("{name}: {error}"))?))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Both fail where it has ended.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// The words of the kernel, which are the same for both.
const CMDLINE: &str = "console=ttyS0 quiet net.ifnames=0 mkvmm.shell";

/// A guest of mkvmm.
struct Ours {
    shell: Shell,
    console: Output,
    _clients: [Process; 2],
    server: Server,
}

impl Ours {
    fn start(directory: &Path, kernel: &Path, initramfs: &Path) -> Result<Self> {
        let root = directory.join("ours");
        disk(&root)?;
        let server = Server::start(|socket| command(MEMORY, socket))?;
        let mut client = server.client()?;
        let body = format!(
            r#"{{"name":"g","memory":{MEMORY},"kernel":"{}","initrd":"{}","cmdline":"{CMDLINE}","disk":"{}","net":"passt","consoles":1,"rng":true}}"#,
            kernel.display(),
            initramfs.display(),
            root.display()
        );
        client.ask("POST", "/v1/instances", &body)?;
        let console = |more: &[&str]| {
            let mut command = Command::new(binary());
            command.args(["console", "g"]).args(more).arg("--socket");
            Process::spawn(command.arg(&server.socket))
        };
        client.ask("POST", "/v1/instances/g/start", "")?;
        let (mut serial, mut further) = (console(&[])?, console(&["--number", "1"])?);
        Ok(Self {
            shell: Shell::of(&mut serial.0)?,
            console: Output::of(further.0.stdout.take().ok_or("no output")?),
            _clients: [serial, further],
            server,
        })
    }
}

/// A guest of QEMU, with the devices that its documentation recommends for speed.
struct Qemu {
    shell: Shell,
    console: Output,
    _processes: [Process; 2],
}

impl Qemu {
    fn start(directory: &Path, kernel: &Path, initramfs: &Path) -> Result<Self> {
        let path = |name: &str| directory.join(name).display().to_string();
        disk(&directory.join("qemu"))?;
        let network = path("passt.sock");
        let mut passt = Command::new("passt");
        passt.args([
            "--foreground",
            "--quiet",
            "--mtu",
            "65520",
            "--socket",
            &network,
        ]);
        // An emulated host has no user nobody, to whom it would change.
        if fs::metadata("/proc/self")?.uid() == 0 {
            passt.args(["--runas", "65534:65534"]);
        }
        let passt = Process::spawn(&mut passt)?;
        wait_for_file(Path::new(&network))?;
        let console = path("console.sock");
        let mut qemu = Command::new("qemu-system-x86_64");
        qemu.args(["-machine", "q35,accel=kvm", "-cpu", "host", "-smp", "1"])
            .args(["-m", &format!("{}M", MEMORY >> 20)])
            .args([
                "-nodefaults",
                "-no-user-config",
                "-display",
                "none",
                "-no-reboot",
            ])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(initramfs)
            .args(["-append", CMDLINE, "-serial", "stdio"])
            .args(["-object", "iothread,id=io", "-drive"])
            .arg(format!(
                "file={},format=raw,if=none,id=disk,cache=writeback,aio=io_uring",
                path("qemu")
            ))
            .args([
                "-device",
                "virtio-blk-pci,drive=disk,iothread=io,disable-legacy=on",
                "-netdev",
            ])
            .arg(format!(
                "stream,id=net,server=off,addr.type=unix,addr.path={network}"
            ))
            .args([
                "-device",
                "virtio-net-pci,netdev=net,host_mtu=65520,disable-legacy=on,romfile=",
            ])
            .args(["-device", "virtio-serial-pci,disable-legacy=on", "-chardev"])
            .arg(format!(
                "socket,id=console,path={console},server=on,wait=off"
            ))
            .args(["-device", "virtconsole,chardev=console"])
            .args(["-object", "rng-random,id=random,filename=/dev/urandom"])
            .args(["-device", "virtio-rng-pci,rng=random,disable-legacy=on"]);
        let mut qemu = Process::spawn(&mut qemu)?;
        wait_for_file(Path::new(&console))?;
        Ok(Self {
            shell: Shell::of(&mut qemu.0)?,
            console: Output::of(UnixStream::connect(&console)?),
            _processes: [qemu, passt],
        })
    }
}

fn wait_for_file(path: &Path) -> Result<()> {
    let end = Instant::now() + LIMIT;
    while !path.exists() {
        if Instant::now() > end {
            return Err(format!("{}: it did not appear", path.display()).into());
        }
        thread::sleep(Duration::from_millis(20));
    }
    Ok(())
}
