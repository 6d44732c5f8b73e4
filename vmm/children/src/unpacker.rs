//! The unpacker: reads one image, writes it unpacked into a file, and exits.

use mkvmm_image::child;
use mkvmm_wire::WireError;
use mkvmm_wire::channel::Channel;
use mkvmm_wire::messages::{UnpackOrder, UnpackReport};

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
    let answer = UnpackReport(child::answer(&job, image, output));
    channel.send(&answer, &[], None)
}
