//! Links the unwinder of gcc into the program.
//!
//! Its shared library examines the processor when it is loaded. In a virtual
//! machine, where CPUID traps, that takes longer than everything else at the
//! start of a program; and each guest has its own process.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // It is linked as a whole, since its users come later on the linker's
    // command line.
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=gcc_eh");
}
