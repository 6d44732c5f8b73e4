//! The unpacker: reads one image, writes it unpacked into a file, and exits.

use std::io;

use mkvmm_base::unpacking::{UnpackError, UnpackErrorClass};
use mkvmm_image::child::Early;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{UnpackOrder, UnpackReport};

use crate::last_words;

/// Returns the answer of an unpacker that is not able to do its work.
pub fn refusal(text: &str) -> UnpackReport {
    let error = io::Error::other(text.to_owned());
    UnpackReport(Err(UnpackError::new(UnpackErrorClass::Resources, &error)))
}

/// Receives one order, carries it out and answers it; twice if the hash of the image
/// comes later, which the first answer says by lacking it.
pub fn serve(mut channel: Channel<UnpackReport, UnpackOrder>) -> Result<(), WireError> {
    let Some(received) = channel.recv(None)? else {
        return Ok(());
    };
    // The channel has checked that there are two.
    let mut files = received.descriptors.into_iter();
    let (Some(image), Some(output)) = (files.next(), files.next()) else {
        return Ok(());
    };
    let UnpackOrder(job) = received.message;
    let early = match last_words::catch(|| Early::answer(&job, image, output)) {
        Ok(Ok(early)) => early,
        Ok(Err(error)) => return channel.send(&UnpackReport(Err(error)), &[], None),
        Err(words) => return channel.send(&refusal(&words), &[], None),
    };
    let first = early.as_answer().clone();
    let is_complete = first.sha256.is_known();
    channel.send(&UnpackReport(Ok(first)), &[], None)?;
    if is_complete {
        return Ok(());
    }
    let answer = match last_words::catch(|| early.complete()) {
        Ok(answer) => UnpackReport(answer),
        Err(words) => refusal(&words),
    };
    channel.send(&answer, &[], None)
}
