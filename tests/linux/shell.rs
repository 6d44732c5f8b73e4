//! Consoles with a shell in the guest.

use mkvmm_test_harness::{Running, Server};

use crate::launch::TIMEOUT;

/// A guest's console with a shell.
pub struct Shell {
    console: Running,
    commands: usize,
}

impl Shell {
    /// Connects to the serial port of a guest whose initramfs starts a shell.
    pub fn of_initramfs(server: &Server, name: &str) -> Self {
        Self::open(server, &[name], "mkvmm-root: shell")
    }

    /// Logs in to a Debian at its first further console.
    pub fn log_in(server: &Server, name: &str) -> Self {
        let mut shell = Self::open(server, &[name, "--number", "1"], " login: ");
        shell.console.type_in("root\n");
        let is_in = |c: &Running| c.stdout().contains("root@debian:");
        shell.console.wait_until("a prompt", is_in);
        // It edits no lines, unlike bash, and so prints what it is given.
        shell.console.type_in("exec sh\n");
        let is_sh = |c: &Running| {
            let text = c.stdout();
            text.ends_with("# ") && !text.ends_with(":~# ")
        };
        shell.console.wait_until("the prompt of sh", is_sh);
        shell
    }

    fn open(server: &Server, of: &[&str], ready: &str) -> Self {
        let words = [&["console"], of].concat();
        let mut console = server.command(words).typed().timeout(TIMEOUT).spawn();
        console.wait_until("a shell", |c| c.stdout().contains(ready));
        let commands = 0;
        Self { console, commands }
    }

    /// Begins a command. Its end is marked by a line that the shell computes, so
    /// that the echo of what is typed is not taken for it.
    pub fn begin(&mut self, command: &str) {
        self.commands += 1;
        // A terminal takes lines of up to 4095 bytes.
        assert!(command.len() < 4000, "{command}");
        let line = format!("{command}; echo end-$(({} + 0)):$?\n", self.commands);
        self.console.type_in(&line);
    }

    /// Waits for the end of the command, which must succeed; returns all output
    /// since the start of the guest.
    #[track_caller]
    pub fn end(&mut self) -> String {
        let mark = format!("end-{}:", self.commands);
        self.console.wait_until("the end of a command", |c| {
            let text = c.stdout();
            let rest = text.split_once(&mark);
            rest.is_some_and(|(_, rest)| rest.contains('\n'))
        });
        let text = self.console.stdout();
        assert!(text.contains(&format!("{mark}0")), "{text}");
        text
    }

    /// Runs a command, which must succeed; returns all output since the start of
    /// the guest.
    #[track_caller]
    pub fn run(&mut self, command: &str) -> String {
        self.begin(command);
        self.end()
    }

    /// Waits until `happened` with all output since the start of the guest.
    pub fn wait_until(&mut self, what: &str, happened: impl Fn(&str) -> bool) -> String {
        self.console.wait_until(what, |c| happened(&c.stdout()));
        self.console.stdout()
    }
}
