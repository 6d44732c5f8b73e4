//! The granule of sizes: all that is taken from the pool is a multiple of it, so that a
//! scheduler elsewhere need only count.
//!
//! Memory for an instance is gathered from free extents, so it is there whenever there
//! are enough bytes. An image needs one piece. If all sizes are multiples of the
//! granule, so are all free extents and all pieces of an instance; hence an image that
//! is smaller than a granule, less what lies before it, always has its piece. Without
//! that rule, images are refused in a fragmented pool that has room for them.

use mkpool::instance::ChunkPolicy;
use mkvmm_base::Bytes;
use mkvmm_base::image_facts::ImageFacts;

/// What lies before an image in the first piece of an instance: the low window and
/// the control block.
const BEFORE: u64 = 2 << 20;
/// The unit of granules: a huge page, to which kernels are aligned.
const UNIT: u64 = 2 << 20;

/// A reason why a size was refused in a pool with a granule.
#[derive(Debug, thiserror::Error)]
pub enum GranuleError {
    /// The granule itself is not usable.
    #[error("{} cannot be a granule", Bytes(*.granule))]
    Granule {
        /// The granule that was requested.
        granule: u64,
    },
    /// The pool, or a part of it that is held, has no whole number of granules.
    #[error("{} are no multiple of the granule of {}", Bytes(*.size), Bytes(*.granule))]
    Uneven {
        /// The size that was refused.
        size: u64,
        /// The granule of the pool.
        granule: u64,
    },
    /// An instance would have more granules than it can have pieces.
    #[error("{} are more than an instance can have, which is {}", Bytes(*.size), Bytes(*.largest))]
    Large {
        /// The size that was refused.
        size: u64,
        /// The size of the largest instance of the pool.
        largest: u64,
    },
    /// An image might not find a piece.
    #[error(
        "the {image} needs {}, and images here have at most {}", Bytes(*.size), Bytes(*.largest)
    )]
    Image {
        /// What the image is.
        image: &'static str,
        /// The memory that it needs.
        size: u64,
        /// The largest image of the pool.
        largest: u64,
    },
}

impl GranuleError {
    /// Returns the nearest sizes that work.
    pub(super) fn hint(&self) -> String {
        match *self {
            Self::Granule { .. } => format!(
                "it is a multiple of {} and at least {}: the largest image, and {} more",
                Bytes(UNIT),
                Bytes(UNIT + BEFORE),
                Bytes(BEFORE)
            ),
            Self::Uneven { size, granule } => {
                let below = size / granule * granule;
                let above = size.checked_next_multiple_of(granule);
                let sizes = [below, above.unwrap_or(0)].into_iter();
                let sizes: Vec<_> = sizes
                    .filter(|size| *size > 0)
                    .map(|size| Bytes(size).to_string())
                    .collect();
                format!("{} would do", sizes.join(" or "))
            }
            Self::Large { largest, .. } => format!("{} would do", Bytes(largest)),
            Self::Image { .. } => "serve the pool with a larger --granule".to_owned(),
        }
    }
}

/// The rule that a pool has for sizes.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Rule {
    /// The number of which all sizes have to be multiples, if there is one.
    pub granule: Option<u64>,
}

impl Rule {
    /// Returns how an instance is gathered that is not in one piece.
    pub fn policy(self) -> ChunkPolicy {
        self.granule.map_or(ChunkPolicy::Rfc, ChunkPolicy::Units)
    }

    /// Checks the size of an instance that has at most `pieces` pieces.
    pub fn check_instance(self, size: u64, pieces: usize) -> Result<(), GranuleError> {
        self.check_size(size)?;
        let pieces = pieces as u64;
        match self.granule {
            Some(granule) if size / granule > pieces => {
                let largest = granule * pieces;
                Err(GranuleError::Large { size, largest })
            }
            _ => Ok(()),
        }
    }

    /// Checks the size of anything that is taken from the pool.
    pub fn check_size(self, size: u64) -> Result<(), GranuleError> {
        match self.granule {
            Some(granule) if !size.is_multiple_of(granule) => {
                Err(GranuleError::Uneven { size, granule })
            }
            _ => Ok(()),
        }
    }

    /// Returns the size of the largest image, if there is a rule.
    pub fn largest_image(self) -> Option<u64> {
        self.granule.map(|granule| granule - BEFORE)
    }

    /// Checks that images have their pieces wherever their instance lies.
    pub fn check_images(self, facts: &ImageFacts) -> Result<(), GranuleError> {
        let largest = self.largest_image().unwrap_or(u64::MAX);
        for (image, size) in [
            ("kernel", facts.kernel_size),
            ("initramfs", facts.initramfs_size.unwrap_or(0)),
        ] {
            if size > largest {
                return Err(GranuleError::Image {
                    image,
                    size,
                    largest,
                });
            }
        }
        Ok(())
    }
}

/// Checks a granule for a pool of `pool` bytes with parts that are held.
///
/// # Errors
/// Returns a [`GranuleError`].
pub fn check_granule(
    granule: u64,
    pool: u64,
    held: impl IntoIterator<Item = u64>,
) -> Result<(), GranuleError> {
    if granule < UNIT + BEFORE || !granule.is_multiple_of(UNIT) {
        return Err(GranuleError::Granule { granule });
    }
    let mut sizes = [pool].into_iter().chain(held);
    match sizes.find(|size| !size.is_multiple_of(granule)) {
        Some(size) => Err(GranuleError::Uneven { size, granule }),
        None => Ok(()),
    }
}
