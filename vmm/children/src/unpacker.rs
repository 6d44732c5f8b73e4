//! The unpacker: reads one image, writes it unpacked into a file, and exits.

use std::io;

use mkvmm_base::unpacking::{UnpackError, UnpackErrorClass};
use mkvmm_image::child;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{UnpackOrder, UnpackReport};

use crate::last_words;

/// Returns the answer of an unpacker that is not able to do its work.
pub fn refusal(text: &str) -> UnpackReport {
    let error = io::Error::other(text.to_owned());
    UnpackReport(Err(UnpackError::new(UnpackErrorClass::Resources, &error)))
}

/// Receives one order, carries it out and answers it.
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
    let done = last_words::catch(|| child::answer(&job, image, output));
    let answer = match done {
        Ok(answer) => UnpackReport(answer),
        Err(words) => refusal(&words),
    };
    channel.send(&answer, &[], None)
}
