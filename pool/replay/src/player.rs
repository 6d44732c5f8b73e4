//! Performs the operations of one trace, on pools by name, and on the main pool of a boot with its
//! instances.

use crate::trace::{AlgoName, Alloc, Answer, Op};
use mkpool::linux::{Algo, GenPool, Instance, parse_pool_param};
use mkpool::main_pool::PAGE_ORDER;
use mkpool::param::PoolParam;
use serde_json::{Value, json};
use std::collections::HashMap;

/// The address of a main pool whose parameter has none: above everything that PCs have below 4 GiB.
const DEFAULT_START: u64 = 4 << 30;

/// The name of a pool that was never created.
#[derive(Debug)]
pub struct UnknownPool(pub String);

/// The state that the operations of one trace build up.
#[derive(Debug, Default)]
pub struct Player {
    pools: HashMap<String, GenPool>,
    main: Option<GenPool>,
    instances: HashMap<i64, Instance>,
}

impl Player {
    /// Performs `op` and returns the answer in the trace's format.
    ///
    /// # Errors
    ///
    /// Returns [`UnknownPool`] if it names a pool that was never created.
    pub fn play(&mut self, op: Op) -> Result<Answer, UnknownPool> {
        let answer = match op {
            Op::Create { pool, order } => self.create(pool, order),
            Op::Add { pool, base, size } => {
                self.pool(pool)?.add(base, size);
                json!("ok")
            }
            Op::Algo { pool, algo } => {
                self.pool(pool)?.set_algo(algorithm(algo, 0, 0));
                json!("ok")
            }
            Op::Alloc(alloc) => self.alloc(alloc)?,
            Op::Free { pool, addr, size } => ok(&self.pool(pool)?.free(addr, size)),
            Op::Avail { pool } => json!(self.pool(pool)?.avail()),
            Op::Size { pool } => json!(self.pool(pool)?.size()),
            Op::HasAddr { pool, addr, size } => json!(self.pool(pool)?.has_addr(addr, size)),
            Op::Destroy { pool } => {
                let gone = self.pools.remove(&pool).ok_or(UnknownPool(pool))?;
                ok(&gone.destroy())
            }
            seed_level => return Ok(self.play_seed_level(seed_level)),
        };
        Ok(answer.into())
    }

    /// Performs an operation of the multikernel memory code, which may be valid even without a
    /// pool.
    fn play_seed_level(&mut self, op: Op) -> Answer {
        let answer = match op {
            Op::MkSetup {
                param,
                reserve_fails,
            } => return self.setup(param, reserve_fails),
            Op::MkAlloc { size } => {
                let main = self.main.as_mut();
                address(main.and_then(|main| main.alloc(size)))
            }
            // Address 0 is ignored.
            Op::MkFree { addr, size } => match &mut self.main {
                Some(main) if addr != 0 => ok(&main.free(addr, size)),
                _ => json!("ok"),
            },
            Op::MkAvail {} => json!(self.main.as_ref().map_or(0, GenPool::avail)),
            Op::InstanceCreate { id, size, order } => {
                return self.instance_create(id, size, order);
            }
            Op::InstanceDestroy { id } => self.instance_destroy(id),
            Op::InstanceAvail { id } => {
                json!(self.instances.get(&id).map_or(0, Instance::avail))
            }
            Op::InstanceAlloc { id, size, align } => {
                let instance = self.instances.get_mut(&id);
                address(instance.and_then(|instance| instance.alloc(size, align)))
            }
            Op::InstanceFree { id, addr, size } => match self.instances.get_mut(&id) {
                Some(instance) => ok(&instance.free(addr, size)),
                None => json!("ok"),
            },
            _ => Value::Null,
        };
        answer.into()
    }

    fn pool(&mut self, name: String) -> Result<&mut GenPool, UnknownPool> {
        self.pools.get_mut(&name).ok_or(UnknownPool(name))
    }

    fn create(&mut self, name: String, order: i64) -> Value {
        let order = u32::try_from(order).unwrap_or(u32::MAX);
        let made = GenPool::create(order);
        ok(&made.map(|pool| self.pools.insert(name, pool)))
    }

    fn alloc(&mut self, op: Alloc) -> Result<Value, UnknownPool> {
        let pool = self.pool(op.pool)?;
        let algo = op
            .algo
            .map_or(pool.algo(), |name| algorithm(name, op.align, op.offset));
        Ok(address(pool.alloc_algo(op.size, algo)))
    }

    /// Begins a fresh boot: the main pool and all instances are dropped.
    fn setup(&mut self, param: Option<String>, reserve_fails: bool) -> Answer {
        self.main = None;
        self.instances.clear();
        let param = param.and_then(|text| parse_pool_param(&text).ok());
        let Some(PoolParam { size, start }) = param else {
            return json!("EINVAL").into();
        };
        if reserve_fails {
            return json!("ENOMEM").into();
        }
        let mut main = GenPool::create(PAGE_ORDER).expect("the order is below 64");
        main.add(start.unwrap_or(DEFAULT_START), size);
        self.main = Some(main);
        Answer {
            want: json!("ok"),
            start: start.map(hex),
            size: Some(json!(size)),
            chunks: None,
        }
    }

    fn instance_create(&mut self, id: i64, size: u64, order: i64) -> Answer {
        let order = u32::try_from(order).unwrap_or(0);
        let main = self.main.as_mut();
        let created = main.and_then(|main| Instance::create(main, size, order));
        let Some(instance) = created else {
            return json!(false).into();
        };
        let chunks: Vec<Value> = instance
            .chunks()
            .map(|(base, size)| json!([hex(base), size]))
            .collect();
        self.instances.insert(id, instance);
        Answer {
            want: json!(true),
            start: None,
            size: None,
            chunks: Some(json!(chunks)),
        }
    }

    fn instance_destroy(&mut self, id: i64) -> Value {
        match (self.instances.remove(&id), &mut self.main) {
            (Some(instance), Some(main)) => ok(&instance.destroy(main)),
            _ => json!("ok"),
        }
    }
}

fn algorithm(name: AlgoName, align: u64, offset: u64) -> Algo {
    match name {
        AlgoName::FirstFit => Algo::FirstFit,
        AlgoName::FirstFitAlign => Algo::FirstFitAlign { align },
        AlgoName::FirstFitOrderAlign => Algo::FirstFitOrderAlign,
        AlgoName::BestFit => Algo::BestFit,
        AlgoName::Fixed => Algo::Fixed { offset },
    }
}

/// Returns "BUG" for an error: Linux stops the machine in response to an invalid call.
fn ok<T, E>(result: &Result<T, E>) -> Value {
    if result.is_ok() {
        json!("ok")
    } else {
        json!("BUG")
    }
}

fn hex(addr: u64) -> Value {
    json!(format!("{addr:#x}"))
}

fn address(addr: Option<u64>) -> Value {
    addr.map_or(Value::Null, hex)
}
