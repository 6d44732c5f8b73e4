//! The one place that carries actions out, on the event loop's thread.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::audit::audit;
use crate::builder::{Images, InstanceConfig};
use crate::control::action::{Action, Reply, Request, Responder};
use crate::control::debug;
use crate::control::error::ControlError;
use crate::control::metrics::MetricsFacts;
use crate::control::objects;
use crate::control::plan::plan;
use crate::control::pool_map::pool_map;
use crate::event_log::EventKind;
use crate::event_loop::{Supervisor, VmmEvent};
use crate::instance::state::{EndReason, Verb};
use crate::instance::{InstanceId, InstanceName, RunId};
use crate::manager::{Manager, ManagerError};
use mkvmm_api::ErrorObject;

/// The owner of everything while `serve` runs.
#[derive(Debug)]
pub struct Controller {
    manager: Manager,
    /// Who waits for an instance's end.
    waiting: BTreeMap<InstanceId, Vec<Responder>>,
    /// How long guests have when the VMM is to end.
    grace: Duration,
    is_ending: bool,
}

impl Controller {
    /// A controller of `manager`, which gives guests `grace` when it is told
    /// to end.
    pub fn new(manager: Manager, grace: Duration) -> Self {
        Self {
            manager,
            waiting: BTreeMap::new(),
            grace,
            is_ending: false,
        }
    }

    /// The instances.
    pub fn manager(&self) -> &Manager {
        &self.manager
    }

    fn on_request(&mut self, request: Request) {
        let Request {
            action,
            dry_run,
            respond,
        } = request;
        let (name, is_change) = (action.name(), action.is_change());
        let instance = action.instance().map(ToString::to_string);
        let result = match action {
            Action::Kill { name, grace } if !dry_run => match self.kill(&name, grace) {
                Ok(Some(id)) => {
                    // Answered when it has ended.
                    self.waiting.entry(id).or_default().push(respond);
                    return;
                }
                Ok(None) => self.show(&name),
                Err(error) => Err(error.into()),
            },
            action if dry_run && action.is_change() => {
                // What is done and undone below never took effect.
                let paused = self.manager.pool_mut().log_mut().pause(true);
                let result = self.dry_run(action);
                self.manager.pool_mut().log_mut().pause(paused);
                result
            }
            action => self.execute(action),
        };
        if let (Err(error), true) = (&result, is_change) {
            let body = ErrorObject::from(error);
            let kind = EventKind::Refused {
                action: name,
                code: body.code,
                message: body.message,
            };
            self.manager.log().push(instance, kind);
        }
        // A client that has gone needs no answer.
        let _ = respond.send(result);
    }

    fn execute(&mut self, action: Action) -> Result<Reply, ControlError> {
        match action {
            Action::Pool => Ok(Reply::Pool(objects::pool(&self.manager))),
            Action::PoolMap => Ok(Reply::PoolMap(Box::new(pool_map(&self.manager)))),
            Action::PoolLog { limit } => Ok(self.pool_log(limit)),
            Action::Iomem => Ok(Reply::Iomem(objects::iomem(&self.manager))),
            Action::Audit => Ok(Reply::Audit(objects::audit(audit(&self.manager)))),
            Action::Metrics => Ok(Reply::Metrics(Box::new(MetricsFacts::of(&self.manager)))),
            Action::List => self.list(),
            Action::Show(name) => self.show(&name),
            Action::E820(name) => {
                let map = self.manager.find(&name)?.e820(self.manager.pool())?;
                Ok(Reply::E820(map.iter().map(objects::e820_row).collect()))
            }
            Action::Console(name) => {
                let guest = self.manager.find(&name)?;
                Ok(Reply::Console(guest.id(), guest.console().clone()))
            }
            Action::Debug(name, action) => {
                debug::execute(&self.manager, &name, action).map(Reply::Debug)
            }
            Action::Plan(wanted) => {
                let plan = plan(&mut self.manager, &wanted)?;
                Ok(Reply::Plan(Box::new(plan)))
            }
            Action::Create { config, images } => self.create(config, images.as_deref()),
            Action::Load { name, images } => {
                self.manager.load(&name, &images)?;
                self.show(&name)
            }
            Action::Do { verb, name } => self.carry_out(verb, &name),
            Action::Kill { name, grace } => {
                self.kill(&name, grace)?;
                self.show(&name)
            }
            Action::Alloc {
                instance,
                size,
                align,
            } => {
                let range = match &instance {
                    Some(name) => self.manager.alloc_in(name, size, align)?,
                    None => {
                        let pool = self.manager.pool_mut();
                        pool.alloc(size, align).map_err(ManagerError::from)?
                    }
                };
                Ok(Reply::Allocation(range.into()))
            }
            Action::Free { instance, addr } => {
                let range = match &instance {
                    Some(name) => self.manager.free_in(name, addr)?,
                    None => {
                        let pool = self.manager.pool_mut();
                        pool.free(addr).map_err(ManagerError::from)?
                    }
                };
                Ok(Reply::Allocation(range.into()))
            }
        }
    }

    /// What would come of a change. What takes memory is done and undone,
    /// which nobody can see meanwhile; of the rest the legality is checked.
    fn dry_run(&mut self, action: Action) -> Result<Reply, ControlError> {
        match action {
            Action::Create { config, images } => {
                let guest = self.manager.try_create(config, images.as_deref())?;
                let object = objects::instance(&self.manager, &guest);
                self.manager.discard(guest);
                Ok(Reply::Instance(Box::new(object?)))
            }
            Action::Load { name, images } => {
                self.manager.check_load(&name, &images)?;
                self.show(&name)
            }
            Action::Do { verb, name } => {
                self.manager.check(&name, verb)?;
                self.show(&name)
            }
            Action::Kill { name, .. } => {
                self.manager.check(&name, Verb::Kill)?;
                self.show(&name)
            }
            Action::Alloc {
                instance,
                size,
                align,
            } => {
                let reply = self.execute(Action::Alloc {
                    instance: instance.clone(),
                    size,
                    align,
                })?;
                if let Reply::Allocation(allocation) = &reply {
                    let addr = allocation.start;
                    self.execute(Action::Free { instance, addr })?;
                }
                Ok(reply)
            }
            Action::Free { instance, addr } => {
                let range = match &instance {
                    Some(name) => self.manager.find(name)?.sub_pool().allocation(addr),
                    None => self.manager.pool().allocation(addr),
                };
                let range = range.map_err(ManagerError::from)?;
                Ok(Reply::Allocation(range.into()))
            }
            other => self.execute(other),
        }
    }

    fn create(
        &mut self,
        config: InstanceConfig,
        images: Option<&Images>,
    ) -> Result<Reply, ControlError> {
        let name = config.name.clone();
        self.manager.create(config, images)?;
        self.show(&name)
    }

    fn carry_out(&mut self, verb: Verb, name: &InstanceName) -> Result<Reply, ControlError> {
        match verb {
            Verb::Start => self.manager.exec(name)?,
            Verb::Pause => self.manager.pause(name)?,
            Verb::Resume => self.manager.resume(name)?,
            Verb::Unload => self.manager.unload(name)?,
            Verb::Delete => {
                // What it was: afterwards there is nothing to show.
                let last = self.show(name)?;
                self.manager.delete(name)?;
                return Ok(last);
            }
            // They carry more than a name, and have actions of their own.
            Verb::Load | Verb::Kill => self.manager.check(name, verb)?,
        }
        self.show(name)
    }

    /// The instance to wait for, unless it has ended already.
    fn kill(
        &mut self,
        name: &InstanceName,
        grace: Duration,
    ) -> Result<Option<InstanceId>, ManagerError> {
        self.manager.kill(name, grace)?;
        let guest = self.manager.find(name)?;
        Ok(guest.state().is_live().then(|| guest.id()))
    }

    fn show(&self, name: &InstanceName) -> Result<Reply, ControlError> {
        let guest = self.manager.find(name)?;
        let object = objects::instance(&self.manager, guest)?;
        Ok(Reply::Instance(Box::new(object)))
    }

    fn list(&self) -> Result<Reply, ControlError> {
        let object = |guest| objects::instance(&self.manager, guest);
        let all = self.manager.guests().map(object);
        Ok(Reply::Instances(all.collect::<Result<_, _>>()?))
    }

    fn pool_log(&self, limit: Option<u32>) -> Reply {
        let most = limit.and_then(|limit| usize::try_from(limit).ok());
        let records = self.manager.pool().log().last(most.unwrap_or(usize::MAX));
        Reply::PoolLog(records.map(objects::pool_record).collect())
    }

    fn on_end(&mut self, run: RunId, reason: EndReason) {
        if let Some(id) = self.manager.on_ended(run, reason) {
            self.finish(id);
        }
    }

    /// Tells whoever waits that an instance has ended.
    fn finish(&mut self, id: InstanceId) {
        let Some(guest) = self.manager.guest(id) else {
            return;
        };
        guest.console().clear_input();
        let name = guest.name().clone();
        for respond in self.waiting.remove(&id).unwrap_or_default() {
            // A client that has gone needs no answer.
            let _ = respond.send(self.show(&name));
        }
    }
}

impl Supervisor for Controller {
    fn on_event(&mut self, event: VmmEvent) {
        match event {
            VmmEvent::Request(request) => self.on_request(*request),
            VmmEvent::Ended { run, reason } => self.on_end(run, reason),
            VmmEvent::Violation {
                id,
                violation,
                last_reported,
            } => self.manager.on_violation(id, violation, last_reported),
            VmmEvent::LogFailed { id, path, error } => {
                self.manager.on_log_failed(id, &path, &error);
            }
            VmmEvent::News { run, news } => self.manager.on_news(run, *news),
            VmmEvent::Typed(id) => self.manager.on_typed(id),
            // There is no common stream of consoles here.
            VmmEvent::ConsoleFailed(error) => log::error!("console: {error}"),
        }
    }

    fn on_interrupt(&mut self) {
        if self.is_ending || self.grace.is_zero() {
            for id in self.manager.kill_all() {
                self.finish(id);
            }
        } else {
            self.manager.end_all(self.grace);
        }
        self.is_ending = true;
    }

    fn on_tick(&mut self) {
        for id in self.manager.on_tick() {
            self.finish(id);
        }
    }

    fn is_done(&self) -> bool {
        self.is_ending && !self.manager.has_live()
    }
}
