//! The driver layer under a fake driver: what is missing, too old or broken gives one error, and nothing is left behind.
//!
//! Each test runs an ignored one in a process of its own, because a driver is loaded once per process.
#![cfg(all(feature = "cuda", target_os = "linux"))]
#![allow(clippy::unwrap_used, clippy::panic, reason = "a test fails by panicking")]
#![allow(unsafe_code, reason = "parameters of a kernel that does nothing")]

mod fake_driver;

use std::time::Duration;

use fake_driver::{Run, fresh_folder, run, run_with, say};
use kigo::backend::cuda::context::Context;
use kigo::backend::cuda::memory::{DeviceBuffer, PinnedBuffer, Purpose};
use kigo::backend::cuda::module::{KernelParams, Module};
use kigo::backend::cuda::stream::{Event, Launch, Order, Stream};
use kigo::c_api::{kigo_device_count, kigo_device_get_i64, kigo_device_get_str};
use kigo::engine::{Engine, LoadOptions};
use kigo::{Result, Status};
use std::ffi::CStr;
use std::path::Path;
use std::sync::Arc;

/// What `test_kernel` of the fake driver takes.
#[derive(Clone, Copy)]
#[repr(C)]
struct TestParams {
    address: u64,
    value: u64,
}

// SAFETY: the kernel of the fake driver follows no address.
unsafe impl KernelParams for TestParams {}

fn outcome(result: Result<String>) -> String {
    match result {
        Ok(text) => format!("OK {text}"),
        Err(error) => {
            assert!(!error.to_string().contains('\n'), "{error}");
            format!("{} {error}", error.status().name())
        }
    }
}

/// Lists the devices, then opens the device `ORDINAL`, loads kernels into it and says what it is.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_open() {
    let ordinal = std::env::var("ORDINAL").map_or(0, |text| text.parse().unwrap());
    let list = Context::list().map(|devices| format!("{:?}", devices.iter().map(|d| &d.name).collect::<Vec<_>>()));
    say(outcome(list));
    let open = || {
        let context = Context::open(ordinal)?;
        let module = Module::load(&context, b"any")?;
        module.function("test_kernel")?;
        Ok(format!("{:?}", context.info()))
    };
    say(outcome(open()));
}

/// Uses all there is in the driver layer once, and once more with the context bound all the time.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_everything() {
    say(outcome(Context::open(0).and_then(|context| everything(&context))));
    let bound = || {
        let context = Context::open(0)?;
        let _bound = context.bind()?;
        everything(&context)
    };
    say(outcome(bound()));
}

/// Loads the tiny model on the device `DEVICE`, then on the CPU.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_load() {
    for device in [std::env::var("DEVICE").unwrap(), "cpu".into()] {
        let options = LoadOptions { device, n_threads: Some(1), ..LoadOptions::default() };
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/tiny-llama.gguf");
        say(outcome(Engine::load(&path, &options).map(|engine| engine.device().to_string())));
    }
}

/// Asks through the C API for the number of GPUs, and for all facts about the GPU `ORDINAL`.
#[test]
#[ignore = "run by others, under a fake driver"]
fn child_facts() {
    let none = std::ptr::null_mut();
    let ordinal = std::env::var("ORDINAL").unwrap().parse().unwrap();
    // SAFETY: NULL is allowed.
    say(unsafe { kigo_device_count(none) });
    for key in [c"name", c"architecture", c"memory_bytes"] {
        let mut text = [0_u8; 64];
        // SAFETY: the key ends with a NUL, and the buffer has as many bytes as the call is told.
        let n = unsafe { kigo_device_get_str(ordinal, key.as_ptr(), text.as_mut_ptr().cast(), text.len(), none) };
        say(format!("{n} {}", CStr::from_bytes_until_nul(&text).unwrap().to_string_lossy()));
    }
    for key in [c"memory_bytes", c"n_sm", c"name"] {
        let mut value = 0;
        // SAFETY: the key ends with a NUL, and the value is a local.
        let status = unsafe { kigo_device_get_i64(ordinal, key.as_ptr(), &raw mut value, none) };
        say(format!("{status} {value}"));
    }
}

fn everything(context: &Arc<Context>) -> Result<String> {
    let weights = DeviceBuffer::new(context, Purpose::Weights, 1000, "weights")?;
    let cache = DeviceBuffer::new(context, Purpose::Cache, 4096, "pages")?;
    let mut pinned = PinnedBuffer::new(context, 1000, "a ring")?;
    assert!(pinned.as_slice().iter().all(|byte| *byte == 0));
    let stream = Stream::new(context)?;
    let (start, end) = (Event::new(context)?, Event::new(context)?);
    start.record(&stream)?;

    let bytes: Vec<u8> = (0..250).collect();
    weights.fill_u8(&stream, 7)?;
    weights.upload(&stream, 500, &bytes)?;
    let mut back = vec![0; 1000];
    weights.download(&stream, 0, &mut back)?;
    assert!(back[..500].iter().all(|byte| *byte == 7) && back[500..750] == bytes);

    pinned.as_mut_slice()[..250].copy_from_slice(&bytes);
    cache.upload_async(&stream, 8, &pinned, 0..250)?;
    cache.download_async(&stream, 8, &pinned, 500..750)?;
    stream.synchronize()?;
    assert_eq!(pinned.as_slice()[500..750], bytes);
    pinned.write_u32(4, 77)?;
    assert_eq!(pinned.read_u32(4)?, 77);

    let module = Module::load(context, b"any")?;
    let function = module.function("test_kernel")?;
    function.set_max_shared_bytes(100 << 10)?;
    let launch = Launch { grid: [2, 1, 1], block: [128, 1, 1], shared_bytes: 100 << 10, order: Order::Dependent };
    let params = TestParams { address: weights.address(), value: 1 };
    stream.launch(&function, launch, &params)?;
    let graph = stream.capture(|stream| {
        stream.launch(&function, launch, &params)?;
        weights.fill_u8(stream, 9)?;
        stream.launch(&function, launch, &params)
    })?;
    graph.launch(&stream)?;
    graph.launch(&stream)?;
    weights.download(&stream, 0, &mut back)?;
    assert!(back.iter().all(|byte| *byte == 9), "the graph ran");

    end.record(&stream)?;
    end.synchronize()?;
    assert!(end.query()?);
    stream.wait(&end)?;
    assert!(end.elapsed(&start)? > 0.0);
    let ledger = context.ledger();
    assert_eq!((ledger.bytes(Purpose::Weights), ledger.bytes(Purpose::Cache)), (1000, 4096));
    assert_eq!((ledger.device_bytes(), ledger.pinned_bytes()), (5096, 1000));
    assert_eq!(context.verify_residency()?, 5096);
    let free = context.free_memory()?;
    drop((weights, cache, pinned));
    assert_eq!((context.ledger().device_bytes(), context.ledger().pinned_bytes()), (0, 0));
    Ok(free.to_string())
}

#[test]
fn everything_works_and_leaves_nothing() {
    let run = run("child_everything", &[]);
    assert!(run.said.iter().all(|said| said.starts_with("OK ")) && run.said.len() == 2, "{run:?}");
    assert_eq!((run.count("launches"), run.count("graph_launches")), (10, 4), "{run:?}");
    assert_eq!(run.count("dependent_launches"), 6, "three times two runs, {run:?}");
    assert_eq!(run.count("contexts_made"), 1, "the second run has the context of the first, {run:?}");
    run.assert_clean("everything");
    let older = run_on("80");
    assert_eq!(older.count("dependent_launches"), 0, "dependent launches begin with sm_90");
}

fn run_on(devices: &str) -> Run {
    run("child_everything", &[("FAKE_CUDA_DEVICES", devices)])
}

/// Calls that a run of `child_everything` makes when nothing fails.
fn n_calls() -> i64 {
    run("child_everything", &[]).count("calls")
}

#[test]
fn r07_every_call_may_find_no_memory_and_the_next_run_works() {
    for k in 1..=n_calls() {
        let run = run("child_everything", &[("FAKE_CUDA_FAIL_AT", &k.to_string()), ("FAKE_CUDA_FAIL_CODE", "2")]);
        // The call may be of the first run or of the second, or one that frees, which is made again.
        let failed: Vec<&String> = run.said.iter().filter(|said| !said.starts_with("OK ")).collect();
        assert!(failed.len() <= 1 && failed.iter().all(|said| said.starts_with("OUT_OF_MEMORY ")), "call {k}: {run:?}");
        run.assert_clean(&format!("call {k}"));
    }
}

#[test]
fn every_call_may_be_refused_and_the_next_run_works() {
    for k in 1..=n_calls() {
        let run = run("child_everything", &[("FAKE_CUDA_FAIL_AT", &k.to_string()), ("FAKE_CUDA_FAIL_CODE", "1")]);
        let failed: Vec<&String> = run.said.iter().filter(|said| !said.starts_with("OK ")).collect();
        let error = |said: &&String| said.starts_with("DEVICE_ERROR ") && said.contains("CUDA_ERROR_INVALID_VALUE");
        let early = k == 1 && failed.iter().all(|said| said.contains("cuDriverGetVersion"));
        assert!(failed.len() <= 1 && (early || failed.iter().all(error)), "call {k}: {run:?}");
        run.assert_clean(&format!("call {k}"));
    }
}

#[test]
fn r10_r11_after_a_sticky_error_the_device_is_lost_at_once_and_for_ever() {
    for code in ["999", "700"] {
        for k in 1..=n_calls() {
            let run = run("child_everything", &[("FAKE_CUDA_FAIL_AT", &k.to_string()), ("FAKE_CUDA_FAIL_CODE", code)]);
            let [first, second] = &run.said[..] else { panic!("call {k}: {run:?}") };
            // Before there is a device, the driver as a whole fails; while the second run frees, nobody hears of it.
            let lost = if k <= 3 { "DEVICE_ERROR " } else { "DEVICE_LOST " };
            let heard = |said: &String| said.starts_with(lost) && said.contains(code);
            assert!(heard(first) || first.starts_with("OK "), "call {k}: {run:?}");
            assert!(heard(second) || second.starts_with("OK "), "call {k}: {run:?}");
            assert!(heard(second) || !heard(first), "lost for ever, call {k}: {run:?}");
            assert_eq!((run.count("misuse"), run.count("unpopped")), (0, 0), "call {k}: {run:?}");
            let most = if k <= 3 { 2 } else { 0 };
            assert!(run.count("calls_after_loss") <= most, "nothing is asked of a lost device, call {k}: {run:?}");
            assert!(run.took < Duration::from_secs(5), "call {k}: {run:?}");
        }
    }
}

#[test]
fn a_device_without_memory_says_how_much_it_has() {
    let run = run("child_everything", &[("FAKE_CUDA_MEMORY", "3000")]);
    assert_eq!(run.said[0], "OUT_OF_MEMORY out of GPU memory: pages needs 4096 bytes, device \"cuda:0\" has 2000 free");
    run.assert_clean("little memory");
}

fn opened(variables: &[(&str, &str)]) -> (String, String) {
    let run = run("child_open", variables);
    run.assert_clean(&format!("{variables:?}"));
    (run.said[0].clone(), run.said[1].clone())
}

#[test]
fn r01_no_driver() {
    let folder = fresh_folder("no-driver");
    let library = folder.join("libcuda.so.1");
    std::fs::write(&library, "not a library").unwrap();
    let run = run_with(&folder, "child_open", &[]);
    assert!(run.said.iter().all(|said| said.starts_with("NO_DRIVER ")), "{run:?}");
    assert!(run.said[0].contains("libcuda.so.1") && run.said[0].contains("\"cpu\""), "{run:?}");
    let mut cc = std::process::Command::new("cc");
    cc.args(["-shared", "-x", "c", "/dev/null", "-o"]).arg(&library);
    assert!(cc.status().unwrap().success());
    let run = run_with(&folder, "child_open", &[]);
    assert!(run.said.iter().all(|said| said.starts_with("NO_DRIVER ")), "{run:?}");
    assert!(run.said[0].contains("not that of a driver"), "{run:?}");
}

#[test]
fn r02_no_device() {
    let (list, open) = opened(&[("FAKE_CUDA_DEVICES", "")]);
    assert!(list.starts_with("NO_DEVICE ") && list.contains("shows 0 GPU(s)"), "{list}");
    assert_eq!(open, list);
}

#[test]
fn r03_a_driver_that_is_too_old_is_told_with_both_versions() {
    let (list, open) = opened(&[("FAKE_CUDA_VERSION", "12030")]);
    assert!(list.starts_with("DRIVER_TOO_OLD ") && list.contains("12.4") && list.contains("12.3"), "{list}");
    assert_eq!(open, list);
    for code in ["803", "804", "36"] {
        let fail = [("FAKE_CUDA_FAIL_IN", "cuInit"), ("FAKE_CUDA_FAIL_AT", "1"), ("FAKE_CUDA_FAIL_CODE", code)];
        let (list, open) = opened(&[&fail[..], &[("FAKE_CUDA_VERSION", "12080")]].concat());
        assert!(list.starts_with("DRIVER_TOO_OLD ") && list.contains("12.4") && list.contains("12.8"), "{list}");
        assert!(list.contains(&format!("cuInit returned {code}")), "{list}");
        assert!(open.starts_with("OK "), "a failure to start is not remembered: {open}");
    }
}

#[test]
fn r04_a_gpu_that_this_build_has_no_code_for_is_named() {
    let (list, open) = opened(&[("FAKE_CUDA_DEVICES", "75")]);
    assert!(list.starts_with("OK "), "it can be listed: {list}");
    assert!(open.starts_with("UNSUPPORTED_GPU ") && open.contains("sm_75") && open.contains("sm_80"), "{open}");
    let load = |code: &'static str| {
        [("FAKE_CUDA_FAIL_IN", "cuModuleLoadData"), ("FAKE_CUDA_FAIL_AT", "1"), ("FAKE_CUDA_FAIL_CODE", code)]
    };
    let newest = ("FAKE_CUDA_VERSION", "99000");
    let (_, open) = opened(&[&load("209")[..], &[("FAKE_CUDA_DEVICES", "120"), newest]].concat());
    assert!(open.starts_with("UNSUPPORTED_GPU ") && open.contains("sm_120"), "{open}");
    let (_, open) = opened(&[&load("222")[..], &[newest]].concat());
    assert!(open.starts_with("DRIVER_TOO_OLD ") && open.contains("99.0"), "{open}");
}

#[test]
fn r05_the_devices_are_those_that_the_process_may_see_in_their_order() {
    for (visible, expected) in [("", 0), ("99", 0), ("GPU-x", 0), ("1,0", 2), ("1", 1), ("0,99,1", 1)] {
        let (list, open) = opened(&[("FAKE_CUDA_DEVICES", "90,86"), ("CUDA_VISIBLE_DEVICES", visible)]);
        if expected == 0 {
            assert!(list.starts_with("NO_DEVICE "), "{visible}: {list}");
            assert!(list.contains(&format!("CUDA_VISIBLE_DEVICES=\"{visible}\"")), "{list}");
            assert_eq!(open, list);
        } else {
            assert_eq!(list.matches("Fake GPU").count(), expected, "{visible}: {list}");
            let first = format!("Fake GPU {}", &visible[..1]);
            assert!(list.starts_with(&format!("OK [\"{first}\"")) && open.contains(&first), "{visible}: {list} {open}");
        }
    }
    let (list, _) = opened(&[("FAKE_CUDA_DEVICES", "90,86")]);
    assert_eq!(list, "OK [\"Fake GPU 0\", \"Fake GPU 1\"]");
}

#[test]
fn r06_a_device_that_does_not_exist_is_refused() {
    for ordinal in ["1", "999", "4294967295"] {
        let (_, open) = opened(&[("ORDINAL", ordinal)]);
        let expected = format!("NO_DEVICE device \"cuda:{ordinal}\": the NVIDIA driver shows 1 GPU(s); ");
        assert!(open.starts_with(&expected), "{open}");
    }
    let (_, open) = opened(&[("ORDINAL", "1"), ("FAKE_CUDA_DEVICES", "75,90")]);
    assert!(open.starts_with("OK ") && open.contains("compute_capability: (9, 0)"), "{open}");
}

#[test]
fn facts_about_gpus_are_those_of_the_driver() {
    let facts = |variables: &[(&str, &str)]| run("child_facts", variables).said;
    let two = ("FAKE_CUDA_DEVICES", "90,86");
    let second = facts(&[two, ("ORDINAL", "1")]);
    assert_eq!(second, ["2", "11 Fake GPU 1", "6 sm_86", "-1 ", "0 1073741824", "0 8", "-1 0"]);
    for (ordinal, status) in [("2", "-62"), ("-1", "-1")] {
        let said = facts(&[two, ("ORDINAL", ordinal)]);
        assert!(said[0] == "2" && said[1] == format!("{status} ") && said[4] == format!("{status} 0"), "{said:?}");
    }
    let none = facts(&[("FAKE_CUDA_DEVICES", ""), ("ORDINAL", "0")]);
    assert!(none[0] == "0" && none[1] == "-62 ", "{none:?}");
    let old = facts(&[("FAKE_CUDA_VERSION", "11080"), ("ORDINAL", "0")]);
    assert!(old[0] == "-63" && old[1] == "-63 ", "{old:?}");
}

#[test]
fn r01_to_r06_a_model_is_not_loaded_on_a_gpu_that_cannot_run_it_and_the_cpu_still_works() {
    let none = fresh_folder("load-no-driver");
    std::fs::write(none.join("libcuda.so.1"), "not a library").unwrap();
    for (folder, device, variable, status) in [
        (none.as_path(), "cuda", ("", ""), "NO_DRIVER "),
        (fake_driver::folder(), "cuda", ("FAKE_CUDA_DEVICES", ""), "NO_DEVICE "),
        (fake_driver::folder(), "cuda", ("FAKE_CUDA_VERSION", "12030"), "DRIVER_TOO_OLD "),
        (fake_driver::folder(), "cuda", ("FAKE_CUDA_DEVICES", "75"), "UNSUPPORTED_GPU "),
        (fake_driver::folder(), "cuda:1", ("FAKE_CUDA_DEVICES", "90"), "NO_DEVICE "),
        (fake_driver::folder(), "cuda:-1", ("FAKE_CUDA_DEVICES", "90"), "INVALID_ARGUMENT "),
    ] {
        let variables = [("DEVICE", device), variable];
        let said =
            run_with(folder, "child_load", if variable.0.is_empty() { &variables[..1] } else { &variables }).said;
        assert!(said[0].starts_with(status) && said[1] == "OK cpu", "{device}: {said:?}");
    }
}

#[test]
fn statuses_of_the_device_have_their_numbers() {
    let numbers =
        [Status::NoDriver, Status::NoDevice, Status::DriverTooOld, Status::UnsupportedGpu, Status::DeviceLost];
    assert_eq!(numbers.map(|status| status as i32), [-61, -62, -63, -64, -65]);
    assert_eq!(Status::DeviceError as i32, -66);
}
