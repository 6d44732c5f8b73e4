//! Routes that look into guests.

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use axum::response::{IntoResponse, Response};
use tokio::time::timeout;

use crate::control::action::{Action, Reply};
use crate::control::debug::objects::cpu_registers;
use crate::control::debug::{DebugAction, DebugError, DebugReply, PATIENCE, Readings};
use crate::control::error::ControlError;
use crate::control::http::Api;
use crate::control::http::body::{NameParam, Refusal, name};
use crate::control::http::debug_query::{MemoryQuery, RegsQuery, TranslateQuery};
use mkvmm_base::InstanceName;
use crate::vcpu::Reading;
use mkvmm_api::debug::{Memory, Registers, Translation};

type Answer = Result<Response, ControlError>;
type NamePath = Result<Path<String>, PathRejection>;

impl IntoResponse for DebugReply {
    fn into_response(self) -> Response {
        match self {
            Self::Translation(translation) => Json(translation).into_response(),
            // The routes below take them apart, and never send them as they are.
            Self::Readings(_) | Self::Memory(_) => ControlError::Ending.into_response(),
        }
    }
}

/// The registers of an instance's vCPUs: as they are, or, once it has ended,
/// as they were then. A vCPU that runs is stopped for some microseconds.
#[utoipa::path(get, path = "/v1/instances/{name}/regs",
    params(NameParam, RegsQuery),
    responses((status = 200, body = Registers), Refusal))]
pub async fn regs(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<RegsQuery>, QueryRejection>,
) -> Answer {
    let (name, Query(RegsQuery { cpu })) = (name(path)?, query?);
    let (readings, answers) = gather(&api, &name, cpu, None).await?;
    let answered = |cpu: &u8| answers.iter().any(|reading| reading.cpu == *cpu);
    let missing = readings.asked.iter().filter(|cpu| !answered(cpu));
    Ok(Json(Registers {
        missing: missing.copied().collect(),
        cpus: answers.iter().map(cpu_registers).collect(),
        name: readings.name,
        state: readings.state,
        reason: readings.reason,
    })
    .into_response())
}

/// An instance's memory, also while its guest runs. Nothing but its own chunks
/// can be read, and the low window, which is one of them.
#[utoipa::path(get, path = "/v1/instances/{name}/memory",
    params(NameParam, MemoryQuery),
    responses((status = 200, body = Memory), Refusal))]
pub async fn memory(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<MemoryQuery>, QueryRejection>,
) -> Answer {
    let (name, Query(query)) = (name(path)?, query?);
    let through = match query.is_virtual {
        true => Some(Box::new(one(&api, &name, query.cpu, None).await?)),
        false => None,
    };
    let action = DebugAction::Memory {
        addr: query.addr.0,
        len: query.len,
        through,
    };
    let reply = api.call(Action::Debug(name.clone(), action), false).await?;
    match reply {
        Reply::Debug(DebugReply::Memory(bytes)) => {
            let (addr, is_virtual) = (query.addr.0, query.is_virtual);
            let memory = Memory::new(name.to_string(), addr, is_virtual, &bytes);
            Ok(Json(memory).into_response())
        }
        // The controller answers what it was asked.
        _ => Err(ControlError::Ending),
    }
}

/// Where a guest-virtual address leads, entry by entry.
#[utoipa::path(get, path = "/v1/instances/{name}/translate",
    params(NameParam, TranslateQuery),
    responses((status = 200, body = Translation), Refusal))]
pub async fn translate(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<TranslateQuery>, QueryRejection>,
) -> Answer {
    let (name, Query(query)) = (name(path)?, query?);
    let addr = query.addr.0;
    let through = Box::new(one(&api, &name, query.cpu, Some(addr)).await?);
    let action = DebugAction::Translate { addr, through };
    let reply = api.call(Action::Debug(name, action), false).await?;
    Ok(reply.into_response())
}

/// Asks vCPUs for their registers.
async fn ask(
    api: &Api,
    name: &InstanceName,
    cpu: Option<u8>,
    translate: Option<u64>,
) -> Result<Readings, ControlError> {
    let action = DebugAction::Registers { cpu, translate };
    let reply = api.call(Action::Debug(name.clone(), action), false).await?;
    match reply {
        Reply::Debug(DebugReply::Readings(readings)) => Ok(readings),
        // The controller answers what it was asked.
        _ => Err(ControlError::Ending),
    }
}

/// Asks and waits, but no longer than patience lasts. Where a vCPU has just
/// ended, the event loop knows by the time it is asked again.
async fn gather(
    api: &Api,
    name: &InstanceName,
    cpu: Option<u8>,
    translate: Option<u64>,
) -> Result<(Readings, Vec<Reading>), ControlError> {
    let mut readings = ask(api, name, cpu, translate).await?;
    let (mut all, in_time) = collect(&mut readings).await;
    if in_time && all.len() < readings.asked.len() {
        readings = ask(api, name, cpu, translate).await?;
        (all, _) = collect(&mut readings).await;
    }
    Ok((readings, all))
}

/// All answers, and whether nobody was given up.
async fn collect(readings: &mut Readings) -> (Vec<Reading>, bool) {
    let mut all = Vec::new();
    let receive = async {
        while let Some(reading) = readings.answers.recv().await {
            all.push(reading);
        }
    };
    let in_time = timeout(PATIENCE, receive).await.is_ok();
    all.sort_by_key(|reading| reading.cpu);
    (all, in_time)
}

/// The registers of one vCPU, the first unless another is named.
async fn one(
    api: &Api,
    name: &InstanceName,
    cpu: Option<u8>,
    translate: Option<u64>,
) -> Result<Reading, ControlError> {
    let cpu = cpu.unwrap_or(0);
    let (readings, mut all) = gather(api, name, Some(cpu), translate).await?;
    let name = readings.name;
    Ok(all.pop().ok_or(DebugError::Silent { name, cpu })?)
}
