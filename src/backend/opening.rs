//! Devices that get ready while something else is done: a GPU takes a tenth of a second or more for that.

use super::Device;
#[cfg(feature = "cuda")]
use super::cuda::context::Context;
use crate::Result;

/// A device that is getting ready.
pub struct Opening {
    #[cfg(feature = "cuda")]
    gpu: Option<Gpu>,
}

/// A device that is ready.
pub enum Ready {
    /// The host.
    Cpu,
    /// A GPU.
    #[cfg(feature = "cuda")]
    Cuda(std::sync::Arc<Context>),
}

#[cfg(feature = "cuda")]
struct Gpu {
    ordinal: u32,
    /// `None` when no thread could be started; then the device is opened when it is waited for.
    thread: Option<std::thread::JoinHandle<Result<std::sync::Arc<Context>>>>,
}

impl Opening {
    /// Begins to get a device ready. Dropping what it returns waits too, and gives the device back.
    #[cfg_attr(not(feature = "cuda"), expect(unused_variables, reason = "the host is always ready"))]
    pub fn start(device: Device) -> Opening {
        Opening {
            #[cfg(feature = "cuda")]
            gpu: match device {
                Device::Cuda(ordinal) => Some(Gpu::start(ordinal)),
                Device::Cpu | Device::Auto => None,
            },
        }
    }

    /// Waits for the device.
    ///
    /// # Errors
    /// Those of [`Context::open`].
    pub fn finish(self) -> Result<Ready> {
        #[cfg(feature = "cuda")]
        if let Some(mut gpu) = self.gpu {
            return gpu.finish().map(Ready::Cuda);
        }
        Ok(Ready::Cpu)
    }
}

#[cfg(feature = "cuda")]
impl Gpu {
    fn start(ordinal: u32) -> Gpu {
        let open = move || {
            crate::panics::own_thread();
            Context::open(ordinal)
        };
        Gpu { ordinal, thread: std::thread::Builder::new().name("kigo-open".into()).spawn(open).ok() }
    }

    fn finish(&mut self) -> Result<std::sync::Arc<Context>> {
        match self.thread.take() {
            Some(thread) => thread
                .join()
                .unwrap_or_else(|_| Err(crate::Error::Internal(format!("opening cuda:{} has panicked", self.ordinal)))),
            None => Context::open(self.ordinal),
        }
    }
}

#[cfg(feature = "cuda")]
impl Drop for Gpu {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}
