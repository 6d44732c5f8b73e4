//! Links the unwinder of gcc into the program.
//!
//! Its shared library examines the processor when it is loaded, which takes
//! longer than all else that a program does to begin where CPUID traps, that is
//! in a virtual machine; and each guest has a process of its own.

fn main() {
    println!("cargo::rerun-if-changed=build.rs");
    // Whole, for what needs it comes later on the linker's command line.
    println!("cargo::rustc-link-lib=static:+whole-archive,-bundle=gcc_eh");
}
