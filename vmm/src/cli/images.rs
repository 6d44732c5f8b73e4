//! `create` and `load`: instances and images as options.

use std::path::PathBuf;

use crate::cli::client::Call;
use crate::cli::remote::{ChangeArgs, change, done};
use crate::error::{CliError, ExitStatus};
use mkvmm::control::bodies::{CreateBody, LoadBody, Pairs, paths};
use mkvmm::spec::{GuestSpec, INITRD};

#[derive(Debug, clap::Args)]
pub struct CreateArgs {
    /// 1 to 32 letters, digits, `.`, `_`, `-`
    name: String,
    /// Its memory, for instance 128M
    #[arg(long, value_name = "SIZE")]
    memory: String,
    /// Its vCPUs
    #[arg(long, value_name = "N")]
    cpus: Option<String>,
    /// Host processors that its vCPUs may use, for instance 0-3
    #[arg(long, value_name = "LIST")]
    cpus_affinity: Option<String>,
    /// log2 of its granule
    #[arg(long, value_name = "N")]
    order: Option<String>,
    /// What follows when it touches what is not its own: log or stop
    #[arg(long, value_name = "POLICY")]
    violation: Option<String>,
    /// What follows when it reboots: stop or restart
    #[arg(long, value_name = "WHAT")]
    on_reboot: Option<String>,
    /// What follows when it panics: stop or restart
    #[arg(long, value_name = "WHAT")]
    on_panic: Option<String>,
    /// A file that keeps all that it prints, emptied when it first boots
    #[arg(long, value_name = "PATH")]
    console_log: Option<String>,
    /// A kernel to load at once: a path, or `probe`
    #[arg(long, value_name = "PATH")]
    kernel: Option<String>,
    #[command(flatten)]
    more: KernelArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

#[derive(Debug, clap::Args)]
pub struct LoadArgs {
    /// The instance
    name: String,
    /// The kernel: a path, or `probe`
    #[arg(long, value_name = "PATH")]
    kernel: String,
    #[command(flatten)]
    more: KernelArgs,
    #[command(flatten)]
    change: ChangeArgs,
}

/// What goes with a kernel.
#[derive(Debug, clap::Args)]
struct KernelArgs {
    /// An initramfs; several are put one behind the other
    #[arg(long, value_name = "PATH", requires = "kernel")]
    initrd: Vec<String>,
    /// The kernel's command line
    #[arg(long, value_name = "TEXT", requires = "kernel")]
    cmdline: Option<String>,
    /// How a bzImage starts: elf, unpacked on the host, or bzimage, which unpacks itself
    #[arg(long, value_name = "HOW", requires = "kernel")]
    boot: Option<String>,
}

/// The VMM has another working directory than its clients.
fn whole(option: &'static str, path: &str) -> Result<String, CliError> {
    if path == "probe" && option == "kernel" {
        return Ok(path.to_owned());
    }
    let absolute = std::path::absolute(path).map_err(|source| CliError::Directory {
        option,
        path: PathBuf::from(path),
        source,
    })?;
    Ok(absolute.display().to_string())
}

impl CreateArgs {
    fn pairs(&self) -> Result<Pairs, CliError> {
        let mut pairs = vec![("name", self.name.clone()), ("memory", self.memory.clone())];
        let texts = [
            ("cpus", &self.cpus),
            ("cpus-affinity", &self.cpus_affinity),
            ("order", &self.order),
            ("violation", &self.violation),
            ("on-reboot", &self.on_reboot),
            ("on-panic", &self.on_panic),
            ("cmdline", &self.more.cmdline),
            ("boot", &self.more.boot),
        ];
        let given = |(key, text): (_, &Option<String>)| Some((key, text.clone()?));
        pairs.extend(texts.into_iter().filter_map(given));
        for (key, path) in [("console-log", &self.console_log), ("kernel", &self.kernel)] {
            if let Some(path) = path {
                pairs.push((key, whole(key, path)?));
            }
        }
        for path in &self.more.initrd {
            pairs.push((INITRD, whole(INITRD, path)?));
        }
        Ok(pairs)
    }
}

pub fn create(args: &CreateArgs) -> Result<ExitStatus, CliError> {
    let body = CreateBody::from_pairs(&args.pairs()?).map_err(CliError::Instance)?;
    let path = format!("/v1/instances{}", args.change.query());
    change(&args.change, Call::new("POST", path).with(&body)?, done)
}

pub fn load(args: &LoadArgs) -> Result<ExitStatus, CliError> {
    let initrds = args.more.initrd.iter().map(|path| whole(INITRD, path));
    let body = LoadBody {
        kernel: whole("kernel", &args.kernel)?,
        initrd: paths(initrds.collect::<Result<_, _>>()?),
        boot: args.more.boot.clone(),
        cmdline: args.more.cmdline.clone(),
    };
    GuestSpec::from_pairs(body.pairs()).map_err(CliError::Instance)?;
    let path = args.change.path(&args.name, "/load");
    change(&args.change, Call::new("POST", path).with(&body)?, done)
}
