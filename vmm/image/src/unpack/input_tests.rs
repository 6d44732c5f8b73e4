use super::*;
use std::io::Write;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::thread;

const SHORT: Duration = Duration::from_millis(50);
const LIMIT: u64 = 1 << 30;

fn memfd(content: &[u8]) -> File {
    let fd = rustix::fs::memfd_create("test", rustix::fs::MemfdFlags::CLOEXEC).unwrap();
    let mut file = File::from(fd);
    file.write_all(content).unwrap();
    file
}

/// Returns the reading end of a pipe, as the manager would open it.
fn pipe() -> (File, io::PipeWriter) {
    let (reader, writer) = io::pipe().unwrap();
    rustix::fs::fcntl_setfl(&reader, rustix::fs::OFlags::NONBLOCK).unwrap();
    (File::from(OwnedFd::from(reader)), writer)
}

fn all(input: Input<'_>) -> Result<(Vec<u8>, Read), Failure> {
    some(input, u64::MAX)
}

/// Reads the first `end` bytes.
fn some(input: Input<'_>, end: u64) -> Result<(Vec<u8>, Read), Failure> {
    let mut bytes = Vec::new();
    let read = input.read(end, |at, piece| {
        assert_eq!(at, bytes.len() as u64);
        bytes.extend_from_slice(piece);
        Ok(())
    })?;
    Ok((bytes, read))
}

fn sum_of(content: &[u8]) -> [u8; 32] {
    Sha256::digest(content).into()
}

#[test]
fn a_file_is_read_and_hashed_from_its_beginning_every_time() {
    let file = memfd(b"abc"); // its position is the end
    for _ in 0..2 {
        let (bytes, read) = all(Input::open(&file, 3).unwrap()).unwrap();
        assert_eq!((bytes.as_slice(), read.size()), (&b"abc"[..], 3));
        assert_eq!(
            read.sha256(&file, &memfd(b"")).unwrap().to_string(),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
    }
    let error = Input::open(&file, 2).unwrap_err().to_string();
    assert_eq!(error, "has 3 bytes, exceeding the limit of 2");
    let error = Input::open(&memfd(b""), 2).unwrap_err();
    assert!(matches!(error, Failure::Image(ImageError::Empty)));
}

#[test]
fn pieces_make_up_the_whole() {
    for len in [HEAD - 1, HEAD, HEAD + 1, HEAD + 2 * PIECE + 7] {
        let content: Vec<u8> = (0..len).map(|i| i.to_le_bytes()[i % 3]).collect();
        let file = memfd(&content);
        let input = Input::open(&file, LIMIT).unwrap();
        assert_eq!(input.head().len(), len.min(HEAD));
        let (bytes, read) = all(input).unwrap();
        assert!(bytes == content, "{len}");
        let sum = read.sha256(&file, &memfd(&bytes)).unwrap();
        assert_eq!(sum.0, sum_of(&content), "{len}");
        let whole = Input::open(&file, LIMIT).unwrap().read_whole().unwrap();
        assert!(whole.bytes() == content, "{len}");
        let sum = whole.sha256(&memfd(b""), &memfd(b"")).unwrap();
        assert_eq!(sum.0, sum_of(&content), "{len}");
    }
}

#[test]
fn what_holds_no_image_is_refused() {
    for path in ["/", "/dev/zero"] {
        let file = File::open(path).unwrap();
        let error = Input::open(&file, LIMIT).unwrap_err();
        assert!(matches!(error, Failure::NotAFile), "{path}");
    }
}

#[test]
fn a_file_that_changes_while_it_is_read_is_refused() {
    let mut file = memfd(&[1; HEAD + 100]);
    let reader = file.try_clone().unwrap();
    let input = Input::open(&reader, LIMIT).unwrap();
    file.set_len(HEAD as u64 + 10).unwrap();
    assert!(matches!(all(input), Err(Failure::Changing)));
    let input = Input::open(&reader, LIMIT).unwrap();
    file.write_all(b"more").unwrap();
    assert!(matches!(all(input), Err(Failure::Changing)));
}

#[test]
fn a_file_that_changes_before_it_is_hashed_gets_no_hash() {
    let content: Vec<u8> = (0..HEAD + 3 * PIECE).map(|i| i.to_le_bytes()[1]).collect();
    for end in [100, HEAD, HEAD + PIECE + 1, content.len()] {
        let mut file = memfd(&content);
        let reader = file.try_clone().unwrap();
        let (bytes, read) = some(Input::open(&reader, LIMIT).unwrap(), end as u64).unwrap();
        assert_eq!(bytes, &content[..end]);
        let sum = read.sha256(&reader, &memfd(&bytes)).unwrap();
        assert_eq!(sum.0, sum_of(&content), "{end}");
        thread::sleep(SHORT);
        io::Seek::rewind(&mut file).unwrap();
        file.write_all(&[7; 10]).unwrap();
        let changed = read.sha256(&reader, &memfd(&bytes));
        assert!(matches!(changed, Err(Failure::Changing)), "{end}");
    }
}

#[test]
fn pipes_and_sockets_are_read_to_their_end() {
    let content: Vec<u8> = (0..600_000_u32).flat_map(u32::to_le_bytes).collect();
    let (reader, writer) = pipe();
    let (socket, other) = UnixStream::pair().unwrap();
    let socket = File::from(OwnedFd::from(socket));
    let cases: [(File, Box<dyn Write + Send>); 2] =
        [(reader, Box::new(writer)), (socket, Box::new(other))];
    for (file, mut writer) in cases {
        thread::scope(|scope| {
            scope.spawn(|| {
                writer.write_all(&content).unwrap();
                drop(writer);
            });
            let input = Input::open(&file, LIMIT).unwrap();
            assert_eq!(input.head(), &content[..HEAD]);
            assert_eq!(input.len(), content.len() as u64);
            assert!(all(input).unwrap().0 == content);
        });
    }
}

#[test]
fn a_stream_that_falls_silent_is_an_error_and_no_wait_for_ever() {
    let (file, mut writer) = pipe();
    let mut stream = Stream {
        file: &file,
        socket: false,
    };
    writer.write_all(b"1234").unwrap();
    let error = Input::open_stream(&mut stream, LIMIT, SHORT).unwrap_err();
    assert!(matches!(error, Failure::Stalled { read: 4, .. }));
    writer.write_all(&[0; 1000]).unwrap();
    let error = Input::open_stream(&mut stream, 999, SHORT).unwrap_err();
    assert!(
        error
            .to_string()
            .starts_with("has 1000 bytes or more, exceeding the limit of 999")
    );
    drop(writer);
    let error = Input::open(&file, LIMIT).unwrap_err();
    assert!(matches!(error, Failure::Image(ImageError::Empty)));
}

#[test]
fn a_fifo_is_waited_for_until_its_writer_is_late() {
    let name = format!("mkvmm-fifo-{}", std::process::id());
    let path = std::env::temp_dir().join(name);
    let mode = rustix::fs::Mode::RUSR | rustix::fs::Mode::WUSR;
    rustix::fs::mkfifoat(rustix::fs::CWD, &path, mode).unwrap();
    let flags = rustix::fs::OFlags::RDONLY | rustix::fs::OFlags::NONBLOCK;
    let fifo = rustix::fs::open(&path, flags, rustix::fs::Mode::empty()).unwrap();
    let fifo = File::from(fifo);
    let mut stream = Stream {
        file: &fifo,
        socket: false,
    };
    let error = stream.read(LIMIT, SHORT).unwrap_err();
    assert!(matches!(error, Failure::Stalled { read: 0, .. }));
    let read = thread::scope(|scope| {
        scope.spawn(|| std::fs::write(&path, b"late, but whole").unwrap());
        stream.read(LIMIT, DATA_TIMEOUT).unwrap()
    });
    assert_eq!(read, b"late, but whole");
    std::fs::remove_file(&path).unwrap();
}
