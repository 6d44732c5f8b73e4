use super::*;
use std::io::Write;
use std::os::fd::AsRawFd;
use std::os::unix::net::UnixStream;
use std::thread;

const SHORT: Duration = Duration::from_millis(50);
const LIMIT: u64 = 1 << 30;

fn stream(source: &ImageSource) -> Stream {
    match source.open().unwrap() {
        Opened::Stream(stream) => stream,
        Opened::File(..) => panic!("{source} is a file"),
    }
}

fn path(text: &str) -> ImageSource {
    ImageSource::Path(text.into())
}

fn memfd(content: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(content).unwrap();
    file
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
    let dir = path(std::env::temp_dir().to_str().unwrap());
    assert!(matches!(dir.open(), Err(SourceError::NotAFile)));
    let endless = path("/dev/zero");
    assert!(matches!(endless.open(), Err(SourceError::NotAFile)));
    let nothing = path("/no such file");
    assert!(matches!(nothing.open(), Err(SourceError::Io(_))));
    let nothing = ImageSource::Fd(i32::MAX);
    assert!(matches!(nothing.open(), Err(SourceError::Io(_))));
}

#[test]
fn an_inherited_file_is_read_from_its_beginning_every_time() {
    let file = memfd(b"kernel"); // which leaves it at its end
    for source in [
        ImageSource::Fd(file.as_raw_fd()),
        path(&format!("/dev/fd/{}", file.as_raw_fd())),
    ] {
        for _ in 0..2 {
            let Opened::File(file, id) = source.open().unwrap() else {
                panic!("no file");
            };
            assert_eq!(read_file(&file, &id, 6).unwrap(), b"kernel");
            let error = read_file(&file, &id, 5).unwrap_err();
            assert!(error.to_string().starts_with("has 6 bytes, 5 are"));
        }
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let mut file = memfd(b"kernel");
    let id = FileId::of(&file).unwrap();
    file.write_all(b" and more").unwrap();
    let error = read_file(&file, &id, LIMIT).unwrap_err();
    assert!(matches!(error, SourceError::Changing));
    file.set_len(3).unwrap();
    let error = read_file(&file, &id, LIMIT).unwrap_err();
    assert!(matches!(error, SourceError::Changing));
    file.set_len(0).unwrap();
    let id = FileId::of(&file).unwrap();
    let error = read_file(&file, &id, LIMIT).unwrap_err();
    assert!(matches!(error, SourceError::Empty));
}

#[test]
fn pipes_and_sockets_are_read_to_their_end() {
    let content: Vec<u8> = (0..300_000_u32).flat_map(u32::to_le_bytes).collect();
    let (pipe, writer) = io::pipe().unwrap();
    let (socket, other) = UnixStream::pair().unwrap();
    let by_path = format!("/dev/fd/{}", pipe.as_raw_fd());
    let cases: [(ImageSource, Box<dyn Write + Send>); 2] = [
        (path(&by_path), Box::new(writer)),
        (ImageSource::Fd(socket.as_raw_fd()), Box::new(other)),
    ];
    for (source, mut writer) in cases {
        let mut stream = stream(&source);
        thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&content).unwrap();
                drop(writer);
            });
            let read = stream.read(LIMIT, PATIENCE).unwrap();
            assert!(read == content, "{source}");
        });
    }
}

#[test]
fn a_stream_that_falls_silent_is_an_error_and_no_wait_for_ever() {
    let (pipe, mut writer) = io::pipe().unwrap();
    let mut stream = stream(&ImageSource::Fd(pipe.as_raw_fd()));
    writer.write_all(b"1234").unwrap();
    let error = stream.read(LIMIT, SHORT).unwrap_err();
    assert!(matches!(error, SourceError::Stalled { read: 4 }));
    writer.write_all(&[0; 1000]).unwrap();
    let error = stream.read(999, SHORT).unwrap_err();
    assert!(error.to_string().starts_with("has 1000 bytes or more, 999"));
    drop(writer);
    let error = stream.read(LIMIT, SHORT).unwrap_err();
    assert!(matches!(error, SourceError::Empty));
}

#[test]
fn a_fifo_without_a_writer_is_waited_for_only_so_long() {
    let name = format!("mkvmm-fifo-{}", std::process::id());
    let fifo = std::env::temp_dir().join(name);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &fifo, mode).unwrap();
    let source = ImageSource::Path(fifo.clone());
    let error = stream(&source).read(LIMIT, SHORT).unwrap_err();
    assert!(matches!(error, SourceError::Stalled { read: 0 }));
    let mut waiting = stream(&source);
    let read = thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&fifo, b"late, but whole").unwrap());
        waiting.read(LIMIT, PATIENCE).unwrap()
    });
    assert_eq!(read, b"late, but whole");
    std::fs::remove_file(&fifo).unwrap();
}
