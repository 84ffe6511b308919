//! Which devices a machine has: what the configuration says, opened.

use super::Device;
use super::block::Block;
use super::console::Console;
use super::rng::Entropy;
use crate::config::Config;
use crate::error::Error;
use crate::held::Held;
use crate::layout;

/// The devices, in the order in which they are placed: the console, if it is one, comes first.
pub fn devices(
    config: &Config,
    held: &mut Held,
    console: Option<Console>,
) -> Result<Vec<Box<dyn Device>>, Error> {
    let mut devices: Vec<Box<dyn Device>> = Vec::new();
    if let Some(console) = console {
        devices.push(Box::new(console));
    }
    for disk in held.disks(config)? {
        devices.push(Box::new(Block::new(disk)));
    }
    if config.devices.rng {
        devices.push(Box::new(Entropy::default()));
    }
    if devices.len() > layout::VIRTIO_MAX {
        let (have, most) = (devices.len(), layout::VIRTIO_MAX);
        let what = format!("{have} virtio devices: a machine has room for {most}");
        return Err(Error::Usage(what));
    }
    Ok(devices)
}
