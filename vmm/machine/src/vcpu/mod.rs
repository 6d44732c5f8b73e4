//! ⑥ vCPU threads: one per vCPU, controlled by typed commands.
//!
//! ```text
//!            Run                        guest ends
//!   waiting ─────► running (KVM_RUN) ──────────────► ended: VcpuEvent sent
//!      │           Pause │  ▲ Run
//!      │                 ▼  │
//!      │               parked
//!      └──── Stop ────────┴─────────────────────────► ended: Killed
//! ```
//!
//! A [`Vcpu`] is configured but does not run; [`Vcpu::start`] moves it into its
//! thread, which waits for [`VcpuCommand::Run`], and returns the handle. So all
//! guests of a launch can be complete before the first one runs.
//!
//! A thread answers [`VcpuCommand::Read`] in any state, and stays in that
//! state: the kick that accompanies the command also interrupts `hlt`, and the
//! wait of a vCPU that was never started.

pub mod command;
pub mod cpu;
pub mod exit;
pub mod halt;
pub mod handle;
pub mod modes;
pub mod pause;
pub mod round;
mod run;
mod sleep;
pub mod standstill;
pub mod stop;
mod thread_clock;

pub use command::{ReadRequest, VcpuCommand};
pub use cpu::{Vcpu, VcpuError, VcpuSetup};
pub use exit::{ExitBus, ExitOutcome};
pub use halt::{HaltCheck, LOOK};
pub use handle::VcpuHandle;
pub use pause::{Paused, pause};
pub use standstill::Standstill;
pub use stop::is_stopping;
