//! Queues of work: streams, the events that order them, and graphs of work that is launched as one.

use std::ffi::c_uint;
use std::sync::Arc;

use super::context::Context;
use super::driver::{CuEvent, CuGraph, CuGraphExec, CuLaunchAttribute, CuLaunchConfig, CuStream, code};
use super::module::{Function, KernelParams};
use crate::{Error, Result};

/// Flag of `cuStreamCreate`: no order with the host's default stream.
const STREAM_NON_BLOCKING: c_uint = 1;
/// Mode of `cuStreamBeginCapture`: what other threads do meanwhile does not matter.
const CAPTURE_MODE_THREAD_LOCAL: c_uint = 1;
/// `CU_LAUNCH_ATTRIBUTE_COOPERATIVE`.
const COOPERATIVE: c_uint = 2;
/// `CU_LAUNCH_ATTRIBUTE_PROGRAMMATIC_STREAM_SERIALIZATION`.
const PROGRAMMATIC_STREAM_SERIALIZATION: c_uint = 6;

/// The shape of a launch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Launch {
    /// Blocks in each dimension.
    pub grid: [u32; 3],
    /// Threads of a block in each dimension.
    pub block: [u32; 3],
    /// Dynamic shared memory of a block, in bytes.
    pub shared_bytes: u32,
    /// When its blocks start.
    pub order: Order,
}

/// When the blocks of a launch start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Order {
    /// When the kernel before it in the stream has ended.
    Serial,
    /// The kernel waits for that by itself (`griddepcontrol.wait`), and may start before. Serial before sm_90.
    Dependent,
    /// All at the same time, after the kernel before it.
    Cooperative,
}

/// A queue whose work runs in order.
pub struct Stream {
    context: Arc<Context>,
    raw: CuStream,
}

impl Stream {
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(context: &Arc<Context>) -> Result<Stream> {
        let mut raw = CuStream::NULL;
        // SAFETY: it writes one pointer.
        context.call("cuStreamCreate", |f| unsafe { (f.cuStreamCreate)(&raw mut raw, STREAM_NON_BLOCKING) })?;
        Ok(Stream { context: context.clone(), raw })
    }

    /// The context it belongs to.
    pub fn context(&self) -> &Arc<Context> {
        &self.context
    }

    pub(super) fn raw(&self) -> CuStream {
        self.raw
    }

    /// Waits until all its work is done.
    ///
    /// # Errors
    /// `DeviceLost` when some of it failed, `DeviceError`.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the stream is alive.
        self.context.call("cuStreamSynchronize", |f| unsafe { (f.cuStreamSynchronize)(self.raw) })
    }

    /// Whether all its work is done.
    ///
    /// # Errors
    /// `DeviceLost` when some of it failed, `DeviceError`.
    pub fn is_idle(&self) -> Result<bool> {
        let mut busy = false;
        // SAFETY: the stream is alive.
        self.context.call("cuStreamQuery", |f| match unsafe { (f.cuStreamQuery)(self.raw) } {
            code::NOT_READY => {
                busy = true;
                code::SUCCESS
            }
            code => code,
        })?;
        Ok(!busy)
    }

    /// Lets later work of this stream wait for what `event` recorded.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn wait(&self, event: &Event) -> Result<()> {
        // SAFETY: stream and event are alive.
        self.context.call("cuStreamWaitEvent", |f| unsafe { (f.cuStreamWaitEvent)(self.raw, event.raw, 0) })
    }

    /// Queues a kernel with `params`, which are copied during the call.
    ///
    /// # Errors
    /// `Internal` when the kernel takes parameters of another size; `DeviceLost`, `DeviceError`.
    pub fn launch<P: KernelParams>(&self, function: &Function, launch: Launch, params: &P) -> Result<()> {
        if function.params_bytes() != size_of::<P>() {
            let (name, found, expected) = (function.name(), size_of::<P>(), function.params_bytes());
            return Err(Error::Internal(format!("{name} takes {expected} bytes of parameters, found {found}")));
        }
        let may_depend = self.context.info().compute_capability >= (9, 0);
        let attribute = CuLaunchAttribute {
            id: if launch.order == Order::Cooperative { COOPERATIVE } else { PROGRAMMATIC_STREAM_SERIALIZATION },
            pad: [0; 4],
            value: std::array::from_fn(|index| i32::from(index == 0)),
        };
        let config = CuLaunchConfig {
            grid: launch.grid,
            block: launch.block,
            shared_bytes: launch.shared_bytes,
            stream: self.raw,
            attributes: &raw const attribute,
            n_attributes: c_uint::from(match launch.order {
                Order::Serial => false,
                Order::Dependent => may_depend,
                Order::Cooperative => true,
            }),
        };
        let mut arguments = [(&raw const *params).cast_mut().cast()];
        let (start, none) = (arguments.as_mut_ptr(), std::ptr::null_mut());
        // SAFETY: the configuration outlives the call; the kernel takes one parameter of the size of `params`, from
        // which it is copied. What the kernel then does is what `KernelParams` and the kernel are answerable for.
        self.context.call("cuLaunchKernelEx", |f| unsafe {
            (f.cuLaunchKernelEx)(&raw const config, function.raw(), start, none)
        })
    }

    /// Records what `queue` queues into this stream, instead of running it, as a graph. Functions and buffers that it
    /// uses must live as long as the graph is launched.
    ///
    /// # Errors
    /// Those of `queue`; `OutOfMemory`, `DeviceLost`, `DeviceError`. The stream is usable afterwards.
    pub fn capture(&self, queue: impl FnOnce(&Stream) -> Result<()>) -> Result<Graph> {
        // SAFETY: the stream is alive.
        self.context.call("cuStreamBeginCapture", |f| unsafe {
            (f.cuStreamBeginCapture)(self.raw, CAPTURE_MODE_THREAD_LOCAL)
        })?;
        let capture = Capture { stream: self };
        queue(self)?;
        let recorded = capture.end()?;
        let mut raw = CuGraphExec::NULL;
        self.context.call("cuGraphInstantiate", |f| {
            // SAFETY: the recorded graph is alive; it writes one pointer.
            unsafe { (f.cuGraphInstantiate)(&raw mut raw, recorded.raw, 0) }
        })?;
        Ok(Graph { context: self.context.clone(), raw })
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        // SAFETY: the stream is this value's own; work that is still queued is finished by the driver.
        self.context.release("cuStreamDestroy", |f| unsafe { (f.cuStreamDestroy)(self.raw) });
    }
}

/// A stream that is recording; dropping it ends that.
struct Capture<'a> {
    stream: &'a Stream,
}

/// What was recorded.
struct Recorded<'a> {
    context: &'a Context,
    raw: CuGraph,
}

impl<'a> Capture<'a> {
    fn end(self) -> Result<Recorded<'a>> {
        let stream = self.stream;
        std::mem::forget(self);
        let mut raw = CuGraph::NULL;
        let mut end = || {
            // SAFETY: the stream is alive and recording; it writes one pointer.
            stream.context.call("cuStreamEndCapture", |f| unsafe { (f.cuStreamEndCapture)(stream.raw, &raw mut raw) })
        };
        match end() {
            Ok(()) => Ok(Recorded { context: &stream.context, raw }),
            Err(error) => {
                // Ended or not, the stream must not go on recording.
                let _ = end();
                drop(Recorded { context: &stream.context, raw });
                Err(error)
            }
        }
    }
}

impl Drop for Capture<'_> {
    fn drop(&mut self) {
        let _ = Capture { stream: self.stream }.end();
    }
}

impl Drop for Recorded<'_> {
    fn drop(&mut self) {
        if self.raw != CuGraph::NULL {
            // SAFETY: the graph is this value's own.
            self.context.release("cuGraphDestroy", |f| unsafe { (f.cuGraphDestroy)(self.raw) });
        }
    }
}

/// Recorded work that is launched as one.
pub struct Graph {
    context: Arc<Context>,
    raw: CuGraphExec,
}

impl Graph {
    /// Queues the work into `stream`. Launches of one graph run one after the other.
    ///
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn launch(&self, stream: &Stream) -> Result<()> {
        // SAFETY: graph and stream are alive.
        self.context.call("cuGraphLaunch", |f| unsafe { (f.cuGraphLaunch)(self.raw, stream.raw) })
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        // SAFETY: the graph is this value's own.
        self.context.release("cuGraphExecDestroy", |f| unsafe { (f.cuGraphExecDestroy)(self.raw) });
    }
}

/// A mark in a stream.
pub struct Event {
    context: Arc<Context>,
    raw: CuEvent,
}

impl Event {
    /// # Errors
    /// `OutOfMemory`, `DeviceLost`, `DeviceError`.
    pub fn new(context: &Arc<Context>) -> Result<Event> {
        let mut raw = CuEvent::NULL;
        // SAFETY: it writes one pointer.
        context.call("cuEventCreate", |f| unsafe { (f.cuEventCreate)(&raw mut raw, 0) })?;
        Ok(Event { context: context.clone(), raw })
    }

    /// Marks the work that `stream` has by now; an earlier mark is forgotten.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn record(&self, stream: &Stream) -> Result<()> {
        // SAFETY: event and stream are alive.
        self.context.call("cuEventRecord", |f| unsafe { (f.cuEventRecord)(self.raw, stream.raw) })
    }

    /// Waits until the marked work is done; at once if nothing was marked.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn synchronize(&self) -> Result<()> {
        // SAFETY: the event is alive.
        self.context.call("cuEventSynchronize", |f| unsafe { (f.cuEventSynchronize)(self.raw) })
    }

    /// Whether the marked work is done; true if nothing was marked.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn query(&self) -> Result<bool> {
        let mut ready = true;
        // SAFETY: the event is alive.
        self.context.call("cuEventQuery", |f| match unsafe { (f.cuEventQuery)(self.raw) } {
            code::NOT_READY => {
                ready = false;
                code::SUCCESS
            }
            code => code,
        })?;
        Ok(ready)
    }

    /// Milliseconds of the device from `earlier` to this mark; both must be done.
    ///
    /// # Errors
    /// `DeviceLost`, `DeviceError`.
    pub fn elapsed(&self, earlier: &Event) -> Result<f32> {
        let mut milliseconds = 0.0;
        // SAFETY: both events are alive; it writes one number.
        self.context.call("cuEventElapsedTime", |f| unsafe {
            (f.cuEventElapsedTime)(&raw mut milliseconds, earlier.raw, self.raw)
        })?;
        Ok(milliseconds)
    }
}

impl Drop for Event {
    fn drop(&mut self) {
        // SAFETY: the event is this value's own.
        self.context.release("cuEventDestroy", |f| unsafe { (f.cuEventDestroy)(self.raw) });
    }
}
