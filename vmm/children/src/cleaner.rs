//! The cleaner: makes parts of memory files read as zero, and exits.

use std::fs::File;
use std::sync::Arc;

use mkvmm_base::chain;
use mkvmm_memory::cleaning::{self, Method, Part};
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{CleanOrder, Cleaned};

use crate::last_words;

/// Receives one order, carries it out and answers it.
pub fn serve(mut channel: Channel<Cleaned, CleanOrder>) -> Result<(), WireError> {
    let Some(received) = channel.recv(None)? else {
        return Ok(());
    };
    let order = received.message;
    let files = received.descriptors.into_iter();
    let files: Vec<Arc<File>> = files.map(|fd| Arc::new(File::from(fd))).collect();
    let done = last_words::catch(|| carry_out(&order, &files));
    let answer = Cleaned(done.flatten());
    channel.send(&answer, &[], None)
}

fn carry_out(order: &CleanOrder, files: &[Arc<File>]) -> Result<(), String> {
    let method = match order.keep_pages {
        true => Method::Zero,
        false => Method::Punch,
    };
    for part in &order.parts {
        let file = usize::try_from(part.file).ok();
        let file = file.and_then(|number| files.get(number));
        let file = file.ok_or_else(|| format!("there is no file {}", part.file))?;
        let part = Part {
            offset: part.extent.start,
            len: part.extent.len,
        };
        cleaning::clean(file, part, method).map_err(|error| chain(&error))?;
    }
    Ok(())
}
