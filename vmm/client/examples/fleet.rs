//! Makes the pool be what a fleet of two built-in test guests says, waits until both have
//! ended, prints what they have printed last, and deletes them.

use std::error::Error;
use std::io::{self, Write};

use mkvmm_api::InstanceSpec;
use mkvmm_api::apply::ApplyBody;
use mkvmm_api::bodies::CreateBody;
use mkvmm_client::Client;

/// What is printed goes to `out`.
pub fn fleet(client: &Client, out: &mut dyn Write) -> Result<(), Box<dyn Error>> {
    let pool = client.pool()?;
    writeln!(
        out,
        "pool: {}M of {}M are free",
        pool.avail >> 20,
        pool.range.size >> 20
    )?;
    let mut fleet = ApplyBody::default();
    for name in ["one", "two"] {
        // The keys are those of a fleet file, and of `mkvmm run --guest`.
        let spec: InstanceSpec = format!("name={name},memory=8M,kernel=probe").parse()?;
        fleet.instances.push(CreateBody(spec));
    }
    for change in client.apply(&fleet)?.changes {
        writeln!(out, "{}: {:?}", change.name, change.action)?;
    }
    for name in ["one", "two"] {
        let ended = client.wait(name)?;
        let reason = ended.reason.map(|reason| reason.to_string());
        let output = client.output(name)?;
        let last = output.lines().last().unwrap_or_default();
        writeln!(
            out,
            "{name}: ended ({}), '{last}'",
            reason.unwrap_or_default()
        )?;
        client.delete(name)?;
    }
    let audit = client.audit()?;
    writeln!(out, "audit: {}", if audit.ok { "ok" } else { "not ok" })?;
    Ok(())
}

fn main() -> Result<(), Box<dyn Error>> {
    // At $MKVMM_SOCKET, or where `mkvmm serve` listens without an option.
    fleet(&Client::find(), &mut io::stdout())
}
