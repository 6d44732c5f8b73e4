//! Finds out by experiment what this host supports.
//!
//! Capabilities do not tell whether an unmodified Linux runs: some paravirtual
//! back ends answer every ioctl but cannot emulate an instruction that Linux
//! needs. So a probe executes those instructions in a guest of its own.

pub mod kind;
pub mod offers;

use std::error::Error;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use mkpool::AddrRange;
use mkvmm_api::doctor::{Answer, Findings};
use mkvmm_base::chain;
use mkvmm_base::layout::DYNAMIC_POOL_MIN;
use mkvmm_base::state::{EndReason, OnStall};
use mkvmm_images::Access;
use mkvmm_machine::kvm::host::Host;
use mkvmm_manager::resolve;
use mkvmm_manager::run::Fleet;
use mkvmm_manager::stream::Stream;
use mkvmm_manager::{Children, ConsoleOptions, Leaves};
use mkvmm_memory::host_pool::HostPool;
use mkvmm_memory::place::MIN_POOL;
use mkvmm_memory::pool_memory::PoolMemory;
use mkvmm_memory::reservation::ReservationConfig;

use crate::cli::{ChildOptions, Ground, Treatment, block_on, found};

/// The time after which the test guest is considered stuck: many times what it takes on
/// a busy host.
const PROBE_TIMEOUT: Duration = Duration::from_secs(60);

/// Examines the host. It never fails, since a failure is a finding.
pub fn examine() -> Findings {
    let host = match Host::open() {
        Ok(host) => host,
        Err(error) => {
            let why = chain(&error);
            return Findings {
                kvm: Answer::no(why),
                kvm_kind: kind::look(),
                probe: Answer::no("no KVM"),
                linux: Answer::no("no KVM"),
                address_bits: None,
                memory_slots: None,
                max_vcpus: None,
                offers: offers::look(),
            };
        }
    };
    let address_bits = Some(host.address_bits());
    let memory_slots = Some(host.memory_slots());
    let max_vcpus = Some(host.kvm().get_max_vcpus());
    let probe = answer(host, "", |_| "the probe ended badly".to_owned());
    let linux = if probe.ok {
        match Host::open() {
            Ok(host) => answer(host, "caps", |reason| match reason {
                EndReason::KvmError => {
                    "this KVM cannot emulate an instruction that Linux executes \
                     (int3, cmpxchg16b, xsave or xrstor in supervisor mode)"
                        .to_owned()
                }
                other => format!("the test guest ended with {other}"),
            }),
            Err(error) => Answer::no(chain(&error)),
        }
    } else {
        Answer::no("the probe does not run either")
    };
    Findings {
        kvm: Answer::yes(),
        kvm_kind: kind::look(),
        probe,
        linux,
        address_bits,
        memory_slots,
        max_vcpus,
        offers: offers::look(),
    }
}

/// Runs one probe with `cmdline`; the answer is yes if it ends with a clean
/// reset.
fn answer(host: Host, cmdline: &str, explain: impl Fn(EndReason) -> String) -> Answer {
    match run_probe(host, cmdline) {
        Ok(Some(EndReason::Reboot)) => Answer::yes(),
        Ok(Some(reason)) => Answer::no(explain(reason)),
        Ok(None) => Answer::no("the test guest did not end in time"),
        Err(error) => Answer::no(chain(&*error)),
    }
}

/// Returns how a probe ended; `None` if it did not end in time.
fn run_probe(kvm: Host, cmdline: &str) -> Result<Option<EndReason>, Box<dyn Error + Send + Sync>> {
    let range = AddrRange::with_size(DYNAMIC_POOL_MIN, MIN_POOL)?;
    let config = ReservationConfig::default();
    let memory = PoolMemory::new(range, config, &|_| (), &AtomicBool::new(false))?;
    let pool = HostPool::new(range, config.backing.page_order())?;
    let treatment = Treatment {
        console: ConsoleOptions {
            ring: 64 << 10,
            lossless: false,
        },
        kept_images: 0,
        access: Access::Own,
        connections: Some(0),
        on_stall: OnStall::Kill,
        early: None,
        warm: 0,
        logs: None,
        inherited: 0,
    };
    let children = Children {
        leaves: Leaves::Off,
        keeper: None,
        ..ChildOptions::default().checked()?
    };
    let ground = Ground { kvm, pool, memory };
    let manager = found(ground, children, treatment)?;
    let spec = format!("name=doctor,memory={MIN_POOL},kernel=probe,cmdline={cmdline}");
    let configs = resolve::check(vec![spec.parse()?])?;
    block_on(async {
        let configs = manager.resolve(configs).await?;
        // The output of the probe is not needed.
        let stream = Stream::start(Box::new(std::io::sink()), None, || ())?;
        let mut fleet = Fleet::build(manager, stream, configs).await?;
        fleet.start().await?;
        if tokio::time::timeout(PROBE_TIMEOUT, fleet.finish())
            .await
            .is_err()
        {
            fleet.end_all().await;
            return Ok(None);
        }
        let (outcomes, stream) = fleet.into_parts();
        stream.close();
        stream.join()?;
        Ok(outcomes.first().map(|outcome| outcome.reason))
    })?
}
