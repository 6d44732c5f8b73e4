use super::*;
use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::fs::symlink;
use std::os::unix::net::UnixStream;

/// A temporary directory, removed with the test.
struct Dir(PathBuf);

impl Dir {
    fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("mkvmm-{name}-{}", std::process::id()));
        fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    fn file(&self, name: &str, content: &[u8]) -> PathBuf {
        let path = self.join(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(&path, content).unwrap();
        path
    }
}

impl Drop for Dir {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

fn path(path: impl Into<PathBuf>) -> ImageSource {
    ImageSource::Path(path.into())
}

fn client(dirs: &[PathBuf]) -> Access {
    Access::Client(ImageDirs::open(dirs).unwrap())
}

fn content(opened: Opened) -> Vec<u8> {
    let mut bytes = Vec::new();
    File::from(opened.fd).read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn a_descriptor_is_told_from_a_path() {
    let parse = |text: &str| text.parse::<ImageSource>().unwrap();
    assert_eq!(parse("fd:3"), ImageSource::Fd(3));
    assert_eq!(parse("./fd:3"), path("./fd:3"));
    assert_eq!(parse("fd:-1"), path("fd:-1"));
    assert_eq!(parse("fd:x"), path("fd:x"));
    assert_eq!(parse("fd:7").to_string(), "fd:7");
}

#[test]
fn what_holds_no_image_is_refused() {
    let dir = path(std::env::temp_dir());
    for access in [Access::Own, client(&[])] {
        for source in [&dir, &path("/dev/zero"), &path("/dev/null")] {
            let error = source.open(&access).unwrap_err();
            assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
        }
        let error = path("/no such file").open(&access).unwrap_err();
        assert!(matches!(error, SourceError::Open(_)), "{error}");
    }
    let error = ImageSource::Fd(i32::MAX).open(&Access::Own).unwrap_err();
    assert!(matches!(error, SourceError::Open(_)), "{error}");
}

#[test]
fn run_may_name_descriptors_and_streams() {
    let dir = Dir::new("own");
    let file = File::open(dir.file("k", b"kernel")).unwrap();
    for source in [
        ImageSource::Fd(file.as_raw_fd()),
        path(format!("/dev/fd/{}", file.as_raw_fd())),
    ] {
        let opened = source.open(&Access::Own).unwrap();
        assert_eq!(opened.id.map(|id| id.size()), Some(6));
    }
    let (reader, mut writer) = io::pipe().unwrap();
    let (socket, _other) = UnixStream::pair().unwrap();
    for source in [
        ImageSource::Fd(reader.as_raw_fd()),
        path(format!("/dev/fd/{}", reader.as_raw_fd())),
        ImageSource::Fd(socket.as_raw_fd()),
    ] {
        assert_eq!(source.open(&Access::Own).unwrap().id, None);
    }
    // The pipe was reopened, and does not block while it is empty.
    let opened = ImageSource::Fd(reader.as_raw_fd())
        .open(&Access::Own)
        .unwrap();
    let error = File::from(opened.fd).read(&mut [0]).unwrap_err();
    assert_eq!(error.kind(), io::ErrorKind::WouldBlock);
    writer.write_all(b"x").unwrap();
}

/// C9: a client talks to a process with different descriptors.
#[test]
fn a_client_reaches_none_of_the_managers_descriptors() {
    let dir = Dir::new("fds");
    let file = File::open(dir.file("k", b"kernel")).unwrap();
    let fd = file.as_raw_fd();
    let access = client(&[]);
    let error = ImageSource::Fd(fd).open(&access).unwrap_err();
    assert!(matches!(error, SourceError::Descriptor), "{error}");
    let link = dir.join("link");
    symlink(format!("/proc/self/fd/{fd}"), &link).unwrap();
    for name in [
        "/proc/self/fd/1".into(),
        format!("/proc/self/fd/{fd}"),
        format!("/dev/fd/{fd}"),
        format!("/proc/{}/fd/{fd}", std::process::id()),
        format!("/proc/self/cwd/../{}/k", dir.0.display()),
        "/proc/self/exe".into(),
        link.display().to_string(),
    ] {
        let error = path(&name).open(&access).unwrap_err();
        assert!(matches!(error, SourceError::Links), "{name}: {error}");
    }
}

#[test]
fn a_client_gets_regular_files_only_and_starts_no_device() {
    let dir = Dir::new("kinds");
    let fifo = dir.join("fifo");
    rustix::fs::mkfifoat(CWD, &fifo, Mode::RUSR | Mode::WUSR).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
    let access = client(&[]);
    for source in [path(&fifo), path(dir.join("socket")), path("/dev/tty")] {
        let error = source.open(&access).unwrap_err();
        assert_eq!(error.to_string(), "is not a regular file", "{source}");
    }
    let file = dir.file("k", b"kernel");
    assert_eq!(content(path(file).open(&access).unwrap()), b"kernel");
}

/// C8: a client stays below the directory, whatever links and names say.
#[test]
fn a_client_stays_beneath_the_image_directories() {
    let dir = Dir::new("beneath");
    let inside = dir.file("images/sub/k", b"inside");
    let outside = dir.file("secret", b"outside");
    let images = dir.join("images");
    symlink(&outside, images.join("absolute")).unwrap();
    symlink("../secret", images.join("relative")).unwrap();
    symlink("sub/k", images.join("latest")).unwrap();
    symlink(&images, dir.join("other-name")).unwrap();
    let access = client(std::slice::from_ref(&images));
    for name in [
        inside.clone(),
        images.join("latest"),
        images.join("sub/../sub/k"),
    ] {
        assert_eq!(content(path(name).open(&access).unwrap()), b"inside");
    }
    for name in ["absolute", "relative", "../secret", "sub/../../secret"] {
        let error = path(images.join(name)).open(&access).unwrap_err();
        assert!(matches!(error, SourceError::LeadsOut), "{name}: {error}");
    }
    for name in [
        outside,
        dir.join("images-not"),
        "k".into(),
        dir.join("other-name/sub/k"),
    ] {
        let error = path(&name).open(&access).unwrap_err();
        assert!(matches!(error, SourceError::Outside), "{}", name.display());
    }
    let error = path(&images).open(&access).unwrap_err();
    assert!(matches!(error, SourceError::NotAFile { .. }), "{error}");
    // A directory that is named by a link is accepted under both names.
    let access = client(&[dir.join("other-name")]);
    for name in [inside, dir.join("other-name/sub/k")] {
        assert_eq!(content(path(name).open(&access).unwrap()), b"inside");
    }
    let error = ImageDirs::open(&[dir.join("secret")]).unwrap_err();
    assert!(matches!(error, SourceError::Directory { .. }), "{error}");
}

/// C8: a link that is constantly exchanged leads to the file inside, or to an
/// error.
#[test]
fn a_link_that_is_exchanged_never_leads_out() {
    let dir = Dir::new("swap");
    dir.file("images/k", b"inside");
    dir.file("secret", b"outside");
    let images = dir.join("images");
    let link = images.join("link");
    let access = client(std::slice::from_ref(&images));
    let stop = std::sync::atomic::AtomicBool::new(false);
    let relaxed = std::sync::atomic::Ordering::Relaxed;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let next = images.join("next");
            for target in ["k", "../secret"].iter().cycle() {
                if stop.load(relaxed) {
                    break;
                }
                symlink(target, &next).unwrap();
                fs::rename(&next, &link).unwrap();
            }
        });
        let (mut inside, mut refused) = (0, 0);
        for _ in 0..1_000_000 {
            match path(&link).open(&access) {
                Ok(opened) => {
                    assert_eq!(content(opened), b"inside");
                    inside += 1;
                }
                Err(_) => refused += 1,
            }
            if inside > 200 && refused > 200 {
                break;
            }
        }
        stop.store(true, relaxed);
        assert!(inside > 200 && refused > 200, "{inside} {refused}");
    });
}
