//! The guest's driver and the host's device against each other, without a VM.

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
mod slots;
#[cfg(test)]
mod speed;
#[cfg(test)]
mod together;
