//! Carries out one trace: the pools by name, and the boot's main pool with its instances.

use super::trace::{AlgoName, Alloc, Answer, Op};
use mkpool::{
    Algo, ChunkPolicy, GenPool, InstancePool, MainPool, Mode, PAGE_ORDER, ParamMode, PoolParam,
};
use serde_json::{Value, json};
use std::collections::HashMap;

/// Where a pool goes whose parameter names no address: clear of everything PCs keep below.
const DEFAULT_START: u64 = 4 << 30;

/// The name of a pool that does not exist.
#[derive(Debug)]
pub struct UnknownPool(pub String);

/// The state of one trace.
#[derive(Debug, Default)]
pub struct Player {
    pools: HashMap<String, GenPool>,
    main: Option<MainPool>,
    instances: HashMap<i64, InstancePool>,
}

impl Player {
    /// Carries out `op` and says what came of it, in the trace's words.
    ///
    /// # Errors
    ///
    /// [`UnknownPool`] if it names a pool that was never created.
    pub fn play(&mut self, op: Op) -> Result<Answer, UnknownPool> {
        let answer = match op {
            Op::Create { pool, order } => self.create(pool, order),
            Op::Add { pool, base, size } => ok(&self.pool(pool)?.add_chunk(base, size, ())),
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

    /// The operations of the multikernel memory code; they make sense without a pool too.
    fn play_seed_level(&mut self, op: Op) -> Answer {
        let answer = match op {
            Op::MkSetup {
                param,
                reserve_fails,
            } => return self.setup(param, reserve_fails),
            Op::MkAlloc { size } => {
                let main = self.main.as_ref();
                address(main.and_then(|main| main.alloc(size).ok()))
            }
            Op::MkFree { addr, size } => self
                .main
                .as_ref()
                .map_or_else(|| json!("ok"), |main| ok(&main.free(addr, size))),
            Op::MkAvail {} => json!(self.main.as_ref().map_or(0, MainPool::avail)),
            Op::InstanceCreate { id, size, order } => {
                return self.instance_create(id, size, order);
            }
            Op::InstanceDestroy { id } => self.instance_destroy(id),
            Op::InstanceAvail { id } => {
                json!(self.instances.get(&id).map_or(0, InstancePool::avail))
            }
            Op::InstanceAlloc { id, size, align } => {
                let instance = self.instances.get_mut(&id);
                address(instance.and_then(|instance| instance.alloc(size, align).ok()))
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
        let made = GenPool::with_mode(order, Mode::Linux);
        ok(&made.map(|pool| self.pools.insert(name, pool)))
    }

    fn alloc(&mut self, op: Alloc) -> Result<Value, UnknownPool> {
        let pool = self.pool(op.pool)?;
        let algo = op
            .algo
            .map_or(pool.algo(), |name| algorithm(name, op.align, op.offset));
        Ok(address(pool.alloc_with(op.size, algo).ok()))
    }

    /// A fresh boot: whatever there was at the seed's level is forgotten.
    fn setup(&mut self, param: Option<String>, reserve_fails: bool) -> Answer {
        self.main = None;
        self.instances.clear();
        let param = param.and_then(|text| PoolParam::parse(&text, ParamMode::Linux).ok());
        let Some(PoolParam { size, start }) = param else {
            return json!("EINVAL").into();
        };
        if reserve_fails {
            return json!("ENOMEM").into();
        }
        match MainPool::linux(start.unwrap_or(DEFAULT_START), size, PAGE_ORDER) {
            Ok(main) => self.main = Some(main),
            Err(_) => return json!("EINVAL").into(),
        }
        Answer {
            want: json!("ok"),
            start: start.map(hex),
            size: Some(json!(size)),
            chunks: None,
        }
    }

    fn instance_create(&mut self, id: i64, size: u64, order: i64) -> Answer {
        let order = u32::try_from(order).unwrap_or(0);
        // The trace's ids are labels; the pool's own number is never looked at here.
        let number = u32::try_from(id).unwrap_or(u32::MAX);
        let created = self.main.as_ref().and_then(|main| {
            InstancePool::create(main, number, size, order, ChunkPolicy::Rfc).ok()
        });
        let Some(instance) = created else {
            return json!(false).into();
        };
        let chunks: Vec<Value> = instance
            .chunks()
            .iter()
            .map(|chunk| json!([hex(chunk.start()), chunk.size()]))
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
        match (self.instances.remove(&id), &self.main) {
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

/// Linux answers a bad call by stopping the machine.
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

fn address(range: Option<mkpool::AddrRange>) -> Value {
    range.map_or(Value::Null, |range| hex(range.start()))
}
