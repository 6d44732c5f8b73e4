//! Compares two sealed files: only if they are equal is one used in place of
//! the other.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use tokio::task::spawn_blocking;

use crate::stored::StoredImage;

/// The number of bytes that are compared at a time: 256 KiB.
const PIECE: usize = 256 << 10;

/// Compares two images of equal size, on a thread that may block.
///
/// # Errors
/// Returns an error if they cannot be compared.
pub async fn are_equal(a: &Arc<StoredImage>, b: &Arc<StoredImage>) -> io::Result<bool> {
    let (a, b) = (Arc::clone(a), Arc::clone(b));
    let compared = spawn_blocking(move || {
        let (x, y) = (a.file().try_clone()?, b.file().try_clone()?);
        files_are_equal(&File::from(x), &File::from(y), a.size())
    });
    compared.await.map_err(io::Error::other)?
}

fn files_are_equal(a: &File, b: &File, size: u64) -> io::Result<bool> {
    let (mut x, mut y) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    while at < size {
        let n = usize::try_from(size - at).unwrap_or(PIECE).min(PIECE);
        let (x, y) = (x.split_at_mut(n).0, y.split_at_mut(n).0);
        a.read_exact_at(x, at)?;
        b.read_exact_at(y, at)?;
        if x != y {
            return Ok(false);
        }
        at += n as u64;
    }
    Ok(true)
}
