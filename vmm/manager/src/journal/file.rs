//! The journal's file: a header, and frames with checksums. `docs/journal.md`
//! describes the format.
//!
//! It is a memory file that a keeper holds, so it survives the manager and not
//! the host: nothing is ever synced to a disk. A frame is written in one call;
//! if its writer is killed meanwhile, only the last frame is incomplete, and the
//! change that it describes has not happened.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::MemfdFlags;

/// The first bytes of every journal.
const MAGIC: [u8; 8] = *b"mkvmm-j\n";
/// The version that is written: of the frames and of the records in them.
pub const VERSION: u32 = 6;
/// The versions that are read: that before has no records of peers, which all speak
/// the same version of the wire protocol then.
const READABLE: std::ops::RangeInclusive<u32> = 2..=VERSION;
/// The length of the header: magic, version, boot, keeper, checksum.
const HEADER_LEN: usize = 8 + 4 + 16 + 8 + 4;
/// The length of a frame's own header: length and checksum.
const FRAME_LEN: usize = 8;
/// The maximum length of a frame's content in bytes.
pub const CONTENT_MAX: usize = 16 << 20;

/// What a journal belongs to: it is useless elsewhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Binding {
    /// The boot of the host, `/proc/sys/kernel/random/boot_id` as a number.
    pub boot: u128,
    /// The identity of the keeper.
    pub keeper: u64,
}

/// A reason why a journal cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum JournalError {
    /// It cannot be created, read or written.
    #[error("the journal cannot be {action}")]
    Io {
        /// The operation that failed.
        action: &'static str,
        /// The underlying error.
        #[source]
        source: io::Error,
    },
    /// It does not begin like a journal.
    #[error("the journal has no valid header")]
    Header,
    /// It was written by a newer or much older mkvmm.
    #[error("the journal has version {found}; this mkvmm reads {first} to {last}")]
    Version {
        /// The version of the journal.
        found: u32,
        /// The oldest version that is read.
        first: u32,
        /// The newest version that is read.
        last: u32,
    },
    /// It belongs to another boot of the host.
    #[error("the journal is of another boot of this host")]
    Boot,
    /// It belongs to another keeper.
    #[error("the journal belongs to another keeper")]
    Keeper,
    /// A frame is invalid although others follow it.
    #[error("the journal is damaged at byte {offset}")]
    Damaged {
        /// The offset of the frame.
        offset: u64,
    },
    /// A frame's content is not what this version writes.
    #[error("the journal has a record that cannot be decoded at byte {offset}")]
    Record {
        /// The offset of the frame.
        offset: u64,
    },
    /// The records contradict each other.
    #[error("the journal contradicts itself: {what}")]
    Contradiction {
        /// The contradiction, for people.
        what: String,
    },
}

pub(super) fn io(action: &'static str) -> impl FnOnce(io::Error) -> JournalError {
    move |source| JournalError::Io { action, source }
}

#[derive(Debug)]
struct Inner {
    file: File,
    /// The offset of the next frame.
    end: u64,
}

/// A journal that is being written.
#[derive(Debug)]
pub struct JournalFile {
    inner: Mutex<Inner>,
}

impl JournalFile {
    /// Creates an empty journal.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`] if the host has no memory or descriptors.
    pub fn create(binding: Binding) -> Result<Self, JournalError> {
        let fd = rustix::fs::memfd_create("mkvmm-journal", MemfdFlags::CLOEXEC)
            .map_err(|errno| io("created")(errno.into()))?;
        let file = File::from(fd);
        let header = header(binding);
        file.write_all_at(&header, 0).map_err(io("written"))?;
        let end = header.len() as u64;
        Ok(Self {
            inner: Mutex::new(Inner { file, end }),
        })
    }

    /// Goes on with a journal that an earlier manager has written, after the frame
    /// that ends at `end`. What follows was never complete, and is removed.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`].
    pub fn resume(file: OwnedFd, end: u64) -> Result<Self, JournalError> {
        let file = File::from(file);
        file.set_len(end).map_err(io("continued"))?;
        Ok(Self {
            inner: Mutex::new(Inner { file, end }),
        })
    }

    /// Appends a frame. After an error the journal is as it was before, and the
    /// next frame takes the place of this one.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`] if the host has no memory left.
    pub fn append(&self, content: &[u8]) -> Result<(), JournalError> {
        if content.len() > CONTENT_MAX {
            let too_long = io::ErrorKind::FileTooLarge.into();
            return Err(io("written")(too_long));
        }
        let mut inner = self.lock();
        let frame = frame(content);
        let end = inner.end;
        if let Err(error) = inner.file.write_all_at(&frame, end) {
            // A part of it may be there, and the next frame may be shorter.
            let _ = inner.file.set_len(end);
            return Err(io("written")(error));
        }
        inner.end += frame.len() as u64;
        Ok(())
    }

    /// Returns the size in bytes.
    pub fn size(&self) -> u64 {
        self.lock().end
    }

    /// Returns a descriptor of the file, for the keeper.
    ///
    /// # Errors
    /// Returns [`JournalError::Io`] if the host has no more descriptors.
    pub fn descriptor(&self) -> Result<OwnedFd, JournalError> {
        let file = self.lock().file.as_fd().try_clone_to_owned();
        file.map_err(io("shared"))
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        // The end is only moved after a frame was written.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn header(binding: Binding) -> Vec<u8> {
    let mut header = MAGIC.to_vec();
    header.extend(VERSION.to_le_bytes());
    header.extend(binding.boot.to_le_bytes());
    header.extend(binding.keeper.to_le_bytes());
    header.extend(crc32fast::hash(&header).to_le_bytes());
    header
}

/// Returns the frame of `content`: its length, the checksum of length and
/// content, and the content.
fn frame(content: &[u8]) -> Vec<u8> {
    let len = u32::try_from(content.len()).unwrap_or(u32::MAX);
    let mut frame = Vec::with_capacity(FRAME_LEN + content.len());
    frame.extend(len.to_le_bytes());
    frame.extend(checksum(len, content).to_le_bytes());
    frame.extend(content);
    frame
}

fn checksum(len: u32, content: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(&len.to_le_bytes());
    hasher.update(content);
    hasher.finalize()
}

/// Returns a whole journal with these contents of frames.
pub fn whole(binding: Binding, contents: &[&[u8]]) -> Vec<u8> {
    let frames = contents.iter().flat_map(|content| frame(content));
    header(binding).into_iter().chain(frames).collect()
}

/// Reads a whole journal file.
///
/// # Errors
/// Returns [`JournalError::Io`].
pub fn read(file: BorrowedFd<'_>) -> Result<Vec<u8>, JournalError> {
    let file = file.try_clone_to_owned().map_err(io("read"))?;
    let file = File::from(file);
    let len = file.metadata().map_err(io("read"))?.len();
    let mut bytes = vec![0; usize::try_from(len).unwrap_or(0)];
    file.read_exact_at(&mut bytes, 0).map_err(io("read"))?;
    Ok(bytes)
}

/// What is in a journal.
#[derive(Debug)]
pub struct Frames<'a> {
    /// The contents of the frames with their offsets.
    pub contents: Vec<(u64, &'a [u8])>,
    /// The offset after the last of them.
    pub end: u64,
    /// True if this version writes the same header.
    pub is_current: bool,
}

/// Returns the frames of a journal. An incomplete one at the end is ignored: its
/// change has not happened.
///
/// # Errors
/// Returns a [`JournalError`] for a journal that is not this one.
pub fn frames(bytes: &[u8], binding: Binding) -> Result<Frames<'_>, JournalError> {
    let (head, mut rest) = bytes
        .split_at_checked(HEADER_LEN)
        .ok_or(JournalError::Header)?;
    check_header(head, binding)?;
    let mut contents = Vec::new();
    let mut offset = HEADER_LEN as u64;
    while !rest.is_empty() {
        let Some((content, after)) = split_frame(rest) else {
            // Written in order, so nothing valid can follow.
            if is_torn(rest) {
                break;
            }
            return Err(JournalError::Damaged { offset });
        };
        contents.push((offset, content));
        offset += (rest.len() - after.len()) as u64;
        rest = after;
    }
    Ok(Frames {
        contents,
        end: offset,
        is_current: head == header(binding),
    })
}

fn check_header(head: &[u8], binding: Binding) -> Result<(), JournalError> {
    let (body, sum) = head.split_last_chunk::<4>().ok_or(JournalError::Header)?;
    let rest = body.strip_prefix(&MAGIC).ok_or(JournalError::Header)?;
    let (version, rest) = rest.split_first_chunk().ok_or(JournalError::Header)?;
    let found = u32::from_le_bytes(*version);
    if !READABLE.contains(&found) {
        let (first, last) = (*READABLE.start(), *READABLE.end());
        return Err(JournalError::Version { found, first, last });
    }
    if u32::from_le_bytes(*sum) != crc32fast::hash(body) {
        return Err(JournalError::Header);
    }
    let (boot, rest) = rest.split_first_chunk().ok_or(JournalError::Header)?;
    let (keeper, _) = rest.split_first_chunk().ok_or(JournalError::Header)?;
    if u128::from_le_bytes(*boot) != binding.boot {
        return Err(JournalError::Boot);
    }
    if u64::from_le_bytes(*keeper) != binding.keeper {
        return Err(JournalError::Keeper);
    }
    Ok(())
}

/// Splits off the content of the first frame, if it is complete and unharmed.
fn split_frame(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (len, rest) = bytes.split_first_chunk()?;
    let (sum, rest) = rest.split_first_chunk()?;
    let len = u32::from_le_bytes(*len);
    let (content, rest) = rest.split_at_checked(usize::try_from(len).ok()?)?;
    (checksum(len, content) == u32::from_le_bytes(*sum)).then_some((content, rest))
}

/// Returns whether an invalid frame can be one whose writer was killed: it
/// reaches to the end of the file.
fn is_torn(bytes: &[u8]) -> bool {
    let Some((len, rest)) = bytes.split_first_chunk() else {
        return true;
    };
    let len = usize::try_from(u32::from_le_bytes(*len)).unwrap_or(usize::MAX);
    len <= CONTENT_MAX && rest.len() <= len.saturating_add(4)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BINDING: Binding = Binding { boot: 7, keeper: 9 };

    fn written(contents: &[&[u8]]) -> Vec<u8> {
        let journal = JournalFile::create(BINDING).unwrap();
        for content in contents {
            journal.append(content).unwrap();
        }
        let bytes = read(journal.descriptor().unwrap().as_fd()).unwrap();
        assert_eq!(bytes.len() as u64, journal.size());
        bytes
    }

    fn contents(bytes: &[u8]) -> Vec<&[u8]> {
        let frames = frames(bytes, BINDING).unwrap().contents;
        frames.into_iter().map(|(_, content)| content).collect()
    }

    #[test]
    fn what_was_written_is_read() {
        let bytes = written(&[b"one", b"", b"three"]);
        assert_eq!(contents(&bytes), [&b"one"[..], b"", b"three"]);
    }

    #[test]
    fn a_torn_tail_is_ignored_wherever_it_is_cut() {
        let whole = written(&[b"one", b"second"]);
        let first = written(&[b"one"]).len();
        for cut in first..whole.len() {
            assert_eq!(contents(&whole[..cut]), [b"one"], "cut at {cut}");
        }
        let mut torn = whole.clone();
        // Pages that were never written read as zero.
        torn[first + 10..].fill(0);
        assert_eq!(contents(&torn), [b"one"]);
    }

    #[test]
    fn what_was_torn_is_gone_once_it_is_resumed() {
        let journal = JournalFile::create(BINDING).unwrap();
        journal.append(b"one").unwrap();
        let (file, len) = (journal.descriptor().unwrap(), journal.size());
        journal.append(b"a second one that is long").unwrap();
        rustix::fs::ftruncate(&file, journal.size() - 1).unwrap();
        let bytes = read(file.as_fd()).unwrap();
        let frames = frames(&bytes, BINDING).unwrap();
        assert_eq!((frames.end, frames.is_current), (len, true));
        let again = file.try_clone().unwrap();
        let resumed = JournalFile::resume(again, frames.end).unwrap();
        assert_eq!(read(file.as_fd()).unwrap().len() as u64, len);
        resumed.append(b"2").unwrap();
        let bytes = read(file.as_fd()).unwrap();
        assert_eq!(contents(&bytes), [&b"one"[..], b"2"]);
    }

    #[test]
    fn an_earlier_version_is_read_and_not_continued() {
        let mut bytes = written(&[b"one"]);
        bytes[8] -= 1;
        let sum = crc32fast::hash(&bytes[..HEADER_LEN - 4]);
        bytes[HEADER_LEN - 4..HEADER_LEN].copy_from_slice(&sum.to_le_bytes());
        let frames = frames(&bytes, BINDING).unwrap();
        assert_eq!((frames.contents.len(), frames.is_current), (1, false));
    }

    #[test]
    fn damage_in_the_middle_is_no_torn_tail() {
        let mut bytes = written(&[b"one", b"second"]);
        bytes[HEADER_LEN + FRAME_LEN] ^= 1;
        let damaged = frames(&bytes, BINDING);
        let offset = HEADER_LEN as u64;
        assert!(matches!(damaged, Err(JournalError::Damaged { offset: o }) if o == offset));
    }

    #[test]
    fn foreign_and_future_journals_are_refused() {
        let mut bytes = written(&[b"one"]);
        let of = |boot, keeper| frames(&bytes, Binding { boot, keeper }).map(drop);
        assert!(matches!(of(8, 9), Err(JournalError::Boot)));
        assert!(matches!(of(7, 8), Err(JournalError::Keeper)));
        let short = frames(&bytes[..20], BINDING);
        assert!(matches!(short, Err(JournalError::Header)));
        bytes[8] = 99;
        let future = frames(&bytes, BINDING);
        assert!(matches!(
            future,
            Err(JournalError::Version { found: 99, .. })
        ));
    }
}
