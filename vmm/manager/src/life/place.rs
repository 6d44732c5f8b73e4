//! Reserves the resources of an instance before anything is created: places for
//! images in its memory, and its share of the host's resources.

use mkpool::instance::Draft;
use mkvmm_base::{InstanceId, InstanceName};
use mkvmm_memory::host_pool::{HostPool, SubPool};

use crate::budget::Amounts;
use crate::devices;
use crate::guest::Loaded;
use crate::images::Images;
use crate::life::StepError;
use crate::manager::Manager;

impl Manager {
    /// Reserves the resources of an instance that has `files` files of memory,
    /// and `images` in addition to those it has. What is short is taken from the
    /// stock of workers.
    pub(crate) async fn book_files(
        &self,
        id: InstanceId,
        files: usize,
        images: Option<&Images>,
    ) -> Result<(), StepError> {
        loop {
            let booked = self.try_book_files(id, files, images);
            match booked {
                Err(StepError::Shortage(_)) if self.stock.give_back().await => {}
                booked => return booked,
            }
        }
    }

    fn try_book_files(
        &self,
        id: InstanceId,
        files: usize,
        images: Option<&Images>,
    ) -> Result<(), StepError> {
        if let Some(guest) = self.registry_mut().guest_mut(id) {
            let loaded = guest.loaded.as_ref().map(|loaded| &loaded.images);
            let images = images.or(loaded).map_or(1, |images| images.infos().len());
            let needed = Amounts::of_instance(guest.config.cpus(), files, images);
            let needed = needed.plus(devices::needs(&guest.config.spec));
            guest.booking.change(needed)?;
        }
        Ok(())
    }

    /// Finds places for images in an instance; changes nothing. Also returns
    /// the allocator's state once they are taken.
    ///
    /// # Errors
    /// Returns a [`StepError`]; the refusal is recorded in the ledger's log.
    pub(crate) fn place(
        &self,
        id: InstanceId,
        images: &Images,
    ) -> Result<Option<(Loaded, Draft)>, StepError> {
        let mut registry = self.registry_mut();
        let Some((guest, pool)) = registry.with_pool(id) else {
            return Ok(None);
        };
        let placed = place(pool, &guest.sub_pool, guest.name(), images);
        if let Err(StepError::Pool(error)) = &placed {
            pool.note_refusal(&guest.sub_pool, error);
        }
        placed.map(Some)
    }
}

/// Finds places for images in a sub-pool; changes nothing.
///
/// # Errors
/// Returns a [`StepError`] with the numbers.
pub fn place(
    pool: &HostPool,
    sub_pool: &SubPool,
    name: &InstanceName,
    images: &Images,
) -> Result<(Loaded, Draft), StepError> {
    let text = images.full_cmdline(name, pool.range(), sub_pool.regions());
    let facts = images.facts();
    mkvmm_base::cmdline::check(&text, facts.cmdline_max)?;
    let facts = facts.placement(images.initramfs_size());
    pool.check_images(&facts)?;
    let (plan, next) = sub_pool.plan(&facts)?;
    let loaded = Loaded {
        images: images.clone(),
        plan,
        cmdline: text,
        e820: Vec::new(),
        slots: Vec::new(),
        generation: 0,
        held: None,
    };
    Ok((loaded, next))
}
