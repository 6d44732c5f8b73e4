//! A manager with one instance that has an honest worker, and one that does
//! not.

use std::cell::Cell;
use std::fs;
use std::rc::Rc;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use log::{LevelFilter, Log, Metadata, Record};
use mkvmm_api::{ImagesSpec, KernelSource, Size};
use mkvmm_base::InstanceName;
use mkvmm_base::state::{EndReason, OnStall, State};
use mkvmm_manager::Manager;
use mkvmm_manager::audit::audit;
use mkvmm_manager::config::InstanceConfig;
use mkvmm_manager::images::Images;
use mkvmm_manager::life::LifeError;
use mkvmm_test_harness::{Scratch, embedded};

use crate::worker::{PLANS, When};

pub const MIB: u64 = 1 << 20;
pub const POOL: u64 = 64 * MIB;
/// The time limit for awaited events on a busy machine.
pub const EVENT_TIMEOUT: Duration = Duration::from_secs(30);
/// How long a worker has for what it does by itself, before the clock is put
/// forward.
const MOMENT: Duration = Duration::from_millis(300);
/// How many seconds: longer than any child is waited for that has little to do.
const FORWARD: u64 = 200;

/// What a worker is called that has no instance.
const WAITS: &str = "(waits)";

static LOGGED: Mutex<Vec<String>> = Mutex::new(Vec::new());

/// A logger that records all lines.
struct Keeper;

impl Log for Keeper {
    fn enabled(&self, _: &Metadata<'_>) -> bool {
        true
    }

    fn log(&self, record: &Record<'_>) {
        let mut logged = LOGGED.lock().expect("nobody fails while logging");
        logged.push(record.args().to_string());
    }

    fn flush(&self) {}
}

/// Records all lines that are logged from now on.
pub fn log_here() {
    log::set_logger(&Keeper).expect("nobody else logs");
    log::set_max_level(LevelFilter::Info);
}

/// Returns all lines that were logged.
pub fn logged() -> Vec<String> {
    LOGGED.lock().expect("nobody fails while logging").clone()
}

/// A manager and its two instances.
pub struct Fixture {
    /// The manager of both.
    pub manager: Rc<Manager>,
    /// Where plans are laid down.
    pub plans: Scratch,
    /// The instance whose children misbehave.
    pub bad: InstanceName,
    good: InstanceName,
    /// The process ID of the honest worker.
    good_pid: Option<i32>,
}

impl Fixture {
    /// Creates both, and starts the honest one.
    pub async fn new() -> Self {
        Self::with(OnStall::Wait, false).await
    }

    /// The same with a policy about workers that are stopped, and with memory
    /// that is populated beforehand or not.
    pub async fn with(on_stall: OnStall, prealloc: bool) -> Self {
        let plans = Scratch::new();
        let environment = (PLANS.to_owned(), plans.dir().display().to_string());
        let mut setup = embedded::ManagerSetup::new(POOL);
        setup.memory.prealloc = prealloc;
        setup.on_stall = on_stall;
        setup.warm = 1;
        let manager = setup.manager_with(vec![environment]);
        let name = |name: &str| name.parse().expect("a name");
        let (bad, good): (InstanceName, InstanceName) = (name("bad"), name("good"));
        for name in [&bad, &good] {
            let config = InstanceConfig::new(name.clone(), Size::mib(8));
            manager.create(config, None).await.expect("it fits");
        }
        let mut fixture = Self {
            manager,
            plans,
            bad,
            good,
            good_pid: None,
        };
        let images = fixture.images(&fixture.good, Some("spin")).await;
        fixture
            .manager
            .load(&fixture.good, images)
            .await
            .expect("it fits");
        fixture
            .manager
            .start(&fixture.good)
            .await
            .expect("it starts");
        fixture.good_pid = fixture.pid_of(&fixture.good);
        let begin = Instant::now();
        while !fixture.printed_by_good().contains("probe: pass") {
            assert!(
                begin.elapsed() < EVENT_TIMEOUT,
                "{}",
                fixture.printed_by_good()
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        fixture
    }

    fn printed_by_good(&self) -> String {
        let registry = self.manager.registry();
        let good = registry.find(&self.good).expect("it was created");
        String::from_utf8_lossy(&good.console().bytes()).into_owned()
    }

    async fn images(&self, name: &InstanceName, cmdline: Option<&str>) -> Images {
        let spec = ImagesSpec {
            kernel: KernelSource::Probe,
            boot: None,
            initrd: Vec::new(),
            cmdline: cmdline.map(str::to_owned),
        };
        let images = self.manager.read_images(name, spec, 8 * MIB).await;
        images.expect("the probe needs no file")
    }

    /// Sets what the next worker of the bad instance does, and when.
    pub fn plan(&self, when: When, deed: &str) {
        self.plans
            .file(self.bad.as_str(), format!("{when:?} {deed}").as_bytes());
    }

    /// Fills the stock with one worker; the first one carries out a plan.
    pub fn fill_stock(&self, when: When, deed: &str) {
        self.plans
            .file(WAITS, format!("{when:?} {deed}").as_bytes());
        self.manager.fill_stock();
    }

    /// Waits until a worker waits for its guest; returns its process ID.
    pub async fn waiting(&self) -> i32 {
        let begin = Instant::now();
        loop {
            if let Some(pid) = self.manager.waiting_workers().first() {
                return *pid;
            }
            assert!(begin.elapsed() < EVENT_TIMEOUT, "nobody waits");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns the process ID of the worker that has carried out the plan.
    /// Fails if there is none.
    pub async fn liar(&self) -> i32 {
        let begin = Instant::now();
        while !self.is_done() {
            assert!(
                begin.elapsed() < EVENT_TIMEOUT,
                "no worker carries out the plan"
            );
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
        let path = self.plans.path(self.bad.as_str());
        let pid = fs::read_to_string(path.with_extension("pid"));
        pid.expect("it leaves its number")
            .parse()
            .expect("a number")
    }

    /// Returns whether a worker has carried out the plan.
    fn is_done(&self) -> bool {
        let mut paths = [self.bad.as_str(), WAITS]
            .map(|name| self.plans.path(name))
            .into_iter();
        paths.any(|path| path.with_extension("deed").exists())
    }

    /// Removes the plan, so that the next worker is honest.
    pub fn forget_the_deed(&self) {
        let path = self.plans.path(self.bad.as_str());
        fs::remove_file(path.with_extension("deed")).expect("it was done");
    }

    /// Loads and starts the bad instance regardless of its state; the clock is
    /// advanced if that takes longer than a moment after the deed.
    ///
    /// # Errors
    /// Returns the error of loading or starting it.
    pub async fn load_and_start(&self) -> Result<(), LifeError> {
        let work = async {
            if self.state_of_bad().0 == State::Ready {
                let images = self.images(&self.bad, None).await;
                self.manager.load(&self.bad, images).await?;
            }
            self.manager.start(&self.bad).await
        };
        let mut work = std::pin::pin!(work);
        let mut begin = Instant::now();
        loop {
            tokio::select! {
                result = &mut work => return result,
                () = tokio::time::sleep(Duration::from_millis(1)) => {}
            }
            if !self.is_done() {
                begin = Instant::now();
            } else if begin.elapsed() > MOMENT {
                forward().await;
                begin = Instant::now();
            }
        }
    }

    /// Waits until the bad instance is in `state`; the clock is advanced if
    /// that takes long.
    pub async fn wait_for(&self, state: State) {
        let (begin, mut moment) = (Instant::now(), Instant::now());
        while self.state_of_bad().0 != state {
            assert!(begin.elapsed() < EVENT_TIMEOUT, "{:?}", self.state_of_bad());
            tokio::time::sleep(Duration::from_millis(1)).await;
            if self.is_done() && moment.elapsed() > MOMENT {
                forward().await;
                moment = Instant::now();
            }
        }
    }

    /// Waits until a signal has stopped the process `pid`.
    pub async fn wait_until_stopped(&self, pid: i32) {
        let begin = Instant::now();
        loop {
            let status = fs::read_to_string(format!("/proc/{pid}/status"));
            if status.is_ok_and(|status| status.contains("\nState:\tT")) {
                return;
            }
            assert!(begin.elapsed() < EVENT_TIMEOUT, "{pid} is not stopped");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Returns state and reason of the bad instance.
    pub fn state_of_bad(&self) -> (State, Option<EndReason>) {
        let registry = self.manager.registry();
        let guest = registry.find(&self.bad).expect("it was created");
        (guest.state(), guest.reason())
    }

    /// Returns the process ID of the bad instance.
    pub fn pid_of_bad(&self) -> Option<i32> {
        self.pid_of(&self.bad)
    }

    fn pid_of(&self, name: &InstanceName) -> Option<i32> {
        let registry = self.manager.registry();
        registry.find(name).ok()?.pid()
    }

    /// Fails unless the process `pid` is gone soon.
    pub async fn expect_gone(&self, pid: i32) {
        let begin = Instant::now();
        while fs::exists(format!("/proc/{pid}")).expect("procfs is there") {
            assert!(begin.elapsed() < EVENT_TIMEOUT, "{pid} is there");
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    }

    /// Fails unless the ledger is consistent, and the honest instance still
    /// runs.
    #[track_caller]
    pub fn expect_peace(&self) {
        let registry = self.manager.registry();
        let findings = audit(&registry);
        assert!(
            findings.checks > 0 && findings.problems.is_empty(),
            "{findings:?}"
        );
        let good = registry.find(&self.good).expect("it was created");
        assert_eq!(good.state(), State::Active);
        assert_eq!(good.pid(), self.good_pid);
    }

    /// Sends requests to the honest instance that its worker has to answer.
    pub async fn bother_the_neighbour(&self) {
        self.manager.pause(&self.good).await.expect("it pauses");
        self.manager.resume(&self.good).await.expect("it resumes");
        self.expect_peace();
    }

    /// Kills the bad instance at once.
    pub async fn kill_bad(&self) {
        let killed = self.manager.kill(&self.bad, Duration::ZERO).await;
        killed.expect("a kill is always legal");
    }

    /// Deletes both. Fails unless the pool is free in one extent then.
    pub async fn tear_down(self) {
        self.bother_the_neighbour().await;
        let killed = self.manager.kill(&self.good, Duration::ZERO).await;
        killed.expect("a kill is always legal");
        for name in [&self.bad, &self.good] {
            self.manager.delete(name).await.expect("it has ended");
        }
        let registry = self.manager.registry();
        let free = registry.pool().free_extents();
        assert_eq!((registry.pool().avail(), free.len()), (POOL, 1));
        assert!(registry.is_empty());
    }
}

thread_local! {
    /// True while the runtime's clock is advanced by hand.
    static IS_FROZEN: Cell<bool> = const { Cell::new(false) };
}

/// The runtime's clock, which is advanced by hand until this is dropped.
struct Frozen;

impl Frozen {
    /// Freezes the clock, unless another future has.
    fn new() -> Option<Self> {
        if IS_FROZEN.replace(true) {
            return None;
        }
        tokio::time::pause();
        Some(Self)
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        IS_FROZEN.set(false);
        tokio::time::resume();
    }
}

/// Advances the runtime's clock second by second, since it is read each second.
/// Several futures may do so at the same time, and be dropped at any time.
pub async fn forward() {
    let Some(_frozen) = Frozen::new() else {
        // Another one advances it far enough.
        return tokio::task::yield_now().await;
    };
    for _ in 0..FORWARD {
        tokio::time::advance(Duration::from_secs(1)).await;
    }
}
