//! The device and the guest's own driver, against each other and without a VM.

#[cfg(test)]
mod bed;
#[cfg(test)]
mod conform;
#[cfg(test)]
mod ends;
#[cfg(test)]
mod faults;
#[cfg(test)]
mod long;
#[cfg(test)]
mod memory;
#[cfg(test)]
mod pattern;
#[cfg(test)]
mod qemu;
#[cfg(test)]
mod slots;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod together;
