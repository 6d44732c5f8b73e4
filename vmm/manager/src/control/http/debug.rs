//! Routes that inspect guests.

use std::rc::Rc;

use axum::Json;
use axum::extract::rejection::{PathRejection, QueryRejection};
use axum::extract::{Path, Query, State};
use tokio::time::timeout;

use mkvmm_api::debug::{Memory, Registers, Translation};
use mkvmm_base::InstanceName;

use crate::control::debug;
use crate::control::debug::error::{ANSWER_TIMEOUT, DebugError};
use crate::control::debug::objects::cpu_registers;
use crate::control::error::ControlError;
use crate::control::http::api::Api;
use crate::control::http::body::{NameParam, Refusal, name};
use crate::control::http::debug_query::{MemoryQuery, RegsQuery, TranslateQuery};
use crate::manager::Manager;
use crate::questions::{Reading, Readings};

type NamePath = Result<Path<String>, PathRejection>;

/// The registers of an instance's vCPUs: the current ones, or, once it has
/// ended, the last ones. A running vCPU is stopped for a few microseconds.
#[utoipa::path(get, path = "/v1/instances/{name}/regs",
    params(NameParam, RegsQuery),
    responses((status = 200, body = Registers), Refusal))]
pub async fn regs(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<RegsQuery>, QueryRejection>,
) -> Result<Json<Registers>, ControlError> {
    let (name, Query(RegsQuery { cpu })) = (name(path)?, query?);
    let (readings, answers) = gather(&api, &name, cpu, None).await?;
    let answered = |cpu: &u8| answers.iter().any(|reading| reading.cpu == *cpu);
    let missing = readings.asked.iter().filter(|cpu| !answered(cpu));
    Ok(Json(Registers {
        missing: missing.copied().collect(),
        cpus: answers.iter().map(cpu_registers).collect(),
        name: readings.name.to_string(),
        state: readings.state,
        reason: readings.reason,
    }))
}

/// An instance's memory, also while its guest runs. Only its own chunks can be
/// read, and the low window, which is backed by one of them.
#[utoipa::path(get, path = "/v1/instances/{name}/memory",
    params(NameParam, MemoryQuery),
    responses((status = 200, body = Memory), Refusal))]
pub async fn memory(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<MemoryQuery>, QueryRejection>,
) -> Result<Json<Memory>, ControlError> {
    let (name, Query(query)) = (name(path)?, query?);
    let through = match query.is_virtual {
        true => Some(one(&api, &name, query.cpu, None).await?),
        false => None,
    };
    let (addr, len, of) = (query.addr.0, query.len, name.clone());
    let read = move |manager: &Rc<Manager>| debug::read(manager, &of, addr, len, through.as_ref());
    let bytes = api.client.ask(read).await?;
    Ok(Json(Memory::new(
        name.to_string(),
        addr,
        query.is_virtual,
        &bytes,
    )))
}

/// The page-table walk of a guest-virtual address, entry by entry.
#[utoipa::path(get, path = "/v1/instances/{name}/translate",
    params(NameParam, TranslateQuery),
    responses((status = 200, body = Translation), Refusal))]
pub async fn translate(
    State(api): State<Api>,
    path: NamePath,
    query: Result<Query<TranslateQuery>, QueryRejection>,
) -> Result<Json<Translation>, ControlError> {
    let (name, Query(query)) = (name(path)?, query?);
    let addr = query.addr.0;
    let through = one(&api, &name, query.cpu, Some(addr)).await?;
    let translate = move |manager: &Rc<Manager>| debug::translate(manager, &name, addr, &through);
    Ok(Json(api.client.ask(translate).await?))
}

/// Requests the registers of vCPUs.
async fn ask(
    api: &Api,
    name: &InstanceName,
    cpu: Option<u8>,
    translate: Option<u64>,
) -> Result<Readings, ControlError> {
    let name = name.clone();
    let ask = move |manager: &Rc<Manager>| {
        let id = manager.registry().find(&name)?.id();
        let readings = manager.ask_registers(id, cpu, translate);
        let readings = readings.map_err(DebugError::from)?;
        // The instance was found just before, on this very thread.
        readings.ok_or(ControlError::Ending)
    };
    api.client.ask(ask).await
}

/// Requests registers and waits for them, up to the timeout. If a vCPU has just
/// ended, the manager knows by the time of a second request.
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
    if !in_time {
        let name = name.clone();
        let suspect = move |manager: &Rc<Manager>| {
            let id = manager.registry().find(&name)?.id();
            manager.suspect(id);
            Ok(())
        };
        // An instance that is gone is no suspect.
        let _ = api.client.ask(suspect).await;
    }
    Ok((readings, all))
}

/// Returns all answers, and whether every vCPU responded.
async fn collect(readings: &mut Readings) -> (Vec<Reading>, bool) {
    let mut all = Vec::new();
    let receive = async {
        while let Some(reading) = readings.answers.recv().await {
            all.push(reading);
        }
    };
    let in_time = timeout(ANSWER_TIMEOUT, receive).await.is_ok();
    all.sort_by_key(|reading| reading.cpu);
    (all, in_time)
}

/// Returns the registers of one vCPU, which is the first unless another is
/// given.
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
