//! The `girandole` program: parse, build, run.
//!
//! Exit codes: 0 for a good end, 1 when running failed, 2 for a command line or configuration that
//! cannot be used. `bench compare` and `gpu-check` have a meaning of their own for each, which their help tells.

use std::io::Write as _;
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context as _;
use tokio::sync::oneshot;

use girandole::api::auth::ApiKeys;
use girandole::api::serve::{listen, serve};
use girandole::api::{AppState, ServedModel};
use girandole::batch::DeviceNumber;
use girandole::bench::capacity::presets::Preset;
use girandole::bench::compare::{CompareOptions, Judgement, compare};
use girandole::bench::options::LoadOptions;
use girandole::bench::render::{self, ReportFiles, ReportOptions};
use girandole::bench::results::{BenchReport, Task};
use girandole::bench::run::RunError;
use girandole::bench::stop::Stop;
use girandole::bench::watcher::LiveWatcher;
use girandole::bench::{self, EngineBench, ReportFormat};
use girandole::config::{BenchCommand, Command, CommandLine, Config, ModelConfig, ModelsCommand};
use girandole::engine::{self, DeviceEngine, EngineHandle, EngineState};
use girandole::events::store::EventStore;
use girandole::gpu_check::{self, GpuCheck};
use girandole::intake::{ImageDefaults, ImageIntake, Intake, TextDefaults, TextIntake};
use girandole::kernels::candle_threads::set_candle_threads;
use girandole::kernels::isa::Isa;
use girandole::kernels::threads::{set_compute_threads, use_own_threads};
use girandole::model::device::DeviceSpec;
use girandole::model::diffusion::loader::ImageFiles;
use girandole::model::diffusion::profile::limit_pass;
use girandole::model::image_frontend::ImageFrontend;
use girandole::model::manifest::{self, GenerationDefaults, Manifest, ModelFiles};
use girandole::model::scripted::{
    self, Script, ScriptedFrontend, ScriptedImageModel, ScriptedModel,
};
use girandole::model::sources::bundled::BUNDLED;
use girandole::model::sources::cache::Verdict;
use girandole::model::sources::{self, LoadFormat, ModelRef, SourceSettings};
use girandole::model::text::chat_template::ChatTemplate;
use girandole::model::text::tokenizer::TextTokenizer;
use girandole::model::{Model, ModelError, diffusion, loader};
use girandole::shutdown::{Signals, on_signals};
use girandole::telemetry::{Metrics, start_logging};
use girandole::time::{Clock, RealClock, unix_seconds};

/// How long connections may take at least for what they have left to send when the engines have
/// stopped, however late that is.
const LINGER: Duration = Duration::from_secs(5);

/// For scripted and random models, which have nothing to say anyway: enough to chat with.
const PLAIN_TEMPLATE: &str = "{% for message in messages %}{{ message.role }}: {{ message.content }}\n\
                              {% endfor %}{% if add_generation_prompt %}assistant: {% endif %}";

fn main() -> ExitCode {
    let line = match CommandLine::parse(std::env::args_os()) {
        Ok(line) => line,
        Err(error) => error.exit(),
    };
    // What only reads finished reports needs no settings, and is not stopped by wrong ones.
    match &line.command {
        Command::Bench(BenchCommand::Compare(options)) => return compare_reports(options),
        Command::Bench(BenchCommand::Report(options)) => {
            return match write_report(options) {
                Ok(()) => ExitCode::SUCCESS,
                Err(error) => complain(&format!("{error:#}"), 1),
            };
        }
        _ => {}
    }
    let mut config = match line.resolve(&environment()) {
        Ok(config) => config,
        Err(error) => return complain(&error.to_string(), 2),
    };
    // One model is measured at a time: the first, unless somebody says which.
    if matches!(line.command, Command::Bench(_)) && config.models_by_default {
        config.models.truncate(1);
    }
    // Before anything starts a thread.
    // What is left to Candle on the CPU is small, and the threads of its pool spin while they wait.
    let told_candle = set_candle_threads(1);
    set_compute_threads(config.compute_threads);
    if let Some(isa) = config.isa
        && !isa.choose()
    {
        return complain(&format!("the kernels cannot use {}", isa.name()), 1);
    }
    if let Err(error) = start_logging(&config.log) {
        return complain(&error.to_string(), 2);
    }
    tracing::debug!(
        told_candle,
        threads = config.compute_threads,
        isa = Isa::detected().name(),
        "the kernels are set up"
    );
    let variables = line.variables();
    let result = match line.command {
        Command::GpuCheck(options) => return check_card(&options),
        Command::Serve => run_service(&config),
        Command::Models(command) => look_after_models(&command, &config),
        Command::Bench(BenchCommand::Engine(options)) => bench_engine(&options, &config),
        Command::Bench(BenchCommand::Run(options, files)) => {
            let serve_with = serve_with(&options.load, &config, variables);
            measure(task_of(&options.load), &files, |watcher| {
                bench::report_of::run(&options, &serve_with, watcher)
            })
        }
        Command::Bench(BenchCommand::Capacity(options, files)) => {
            let serve_with = serve_with(&options.load, &config, variables);
            measure(task_of(&options.load), &files, |watcher| {
                bench::capacity::run(&options, &serve_with, watcher)
            })
        }
        Command::Bench(BenchCommand::Compare(_) | BenchCommand::Report(_)) => {
            unreachable!("they have been dealt with")
        }
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn environment() -> Vec<(String, String)> {
    let text = |value: std::ffi::OsString| value.to_string_lossy().into_owned();
    std::env::vars_os()
        .map(|(name, value)| (text(name), text(value)))
        .collect()
}

fn complain(message: &str, code: u8) -> ExitCode {
    // With stderr closed there is nobody left to tell.
    let _ = writeln!(std::io::stderr(), "girandole: {message}");
    ExitCode::from(code)
}

/// A line for whoever started the program. Logs go to stderr; this is what it has to say.
fn say(line: &str) -> anyhow::Result<()> {
    writeln!(std::io::stdout(), "{line}").context("cannot write to stdout")
}

/// Builds a model on one of its devices, on the thread of that one's engine.
type Build = dyn Fn(DeviceNumber) -> Result<Box<dyn Model>, ModelError> + Send + Sync;

/// A model that is ready to be built on its engines' threads.
struct PreparedModel {
    intake: Intake,
    build: Arc<Build>,
}

/// Gets everything that can be had before the service listens: a missing file or a wrong key is
/// then the only thing that anybody sees.
fn run_service(config: &Config) -> anyhow::Result<()> {
    for line in &config.report {
        tracing::info!("{line}");
    }
    let keys = read_keys(config)?;
    let mut prepared = Vec::new();
    for model in &config.models {
        let ready = prepare(model, &config.sources)
            .with_context(|| format!("cannot serve model {}", model.name))?;
        prepared.push(ready);
    }
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .context("cannot start the async runtime")?;
    let result = runtime.block_on(listen_and_serve(config, keys, prepared));
    // What is left, after a second signal, is not waited for.
    runtime.shutdown_background();
    result
}

fn read_keys(config: &Config) -> anyhow::Result<ApiKeys> {
    let keys = read_key_file("api_key_file", config.api_key_file.as_deref())?;
    let admin_keys = read_key_file("admin_key_file", config.admin_key_file.as_deref())?;
    Ok(keys.with_admin_keys(admin_keys))
}

fn read_key_file(setting: &str, path: Option<&Path>) -> anyhow::Result<ApiKeys> {
    let Some(path) = path else {
        return Ok(ApiKeys::default());
    };
    let name = path.display();
    let text = std::fs::read_to_string(path).with_context(|| format!("{setting} {name}"))?;
    let keys =
        ApiKeys::parse(&text).map_err(|problem| anyhow::anyhow!("{setting} {name}: {problem}"))?;
    // An empty file would open the service to everybody, against what its owner meant.
    anyhow::ensure!(!keys.is_empty(), "{setting} {name} holds no key");
    Ok(keys)
}

fn prepare(config: &ModelConfig, sources: &SourceSettings) -> anyhow::Result<PreparedModel> {
    match sources::fetch(&config.model, config.load_format, sources)? {
        ModelFiles::Scripted(path) => prepare_scripted(config, Script::read(&path)?),
        files => match ImageFiles::of(&files) {
            Some(files) => prepare_images(config, &files),
            None => prepare_text(config, &files),
        },
    }
}

fn prepare_scripted(config: &ModelConfig, script: Script) -> anyhow::Result<PreparedModel> {
    if script.image.is_some() {
        anyhow::ensure!(
            script.model.memory_units >= 2,
            "model.memory_units must be at least 2 with [image]: what a picture with guidance takes"
        );
        return Ok(prepare_scripted_images(config, script));
    }
    let tokenizer = TextTokenizer::bytes(257);
    let asked = config.text.max_context.unwrap_or(u32::MAX);
    Ok(PreparedModel {
        intake: Intake::Text(Box::new(TextIntake {
            template: template(&tokenizer, Some(PLAIN_TEMPLATE))?,
            tokenizer: Arc::new(tokenizer),
            max_context: script.model.served_context().min(asked),
            defaults: defaults(config, &loader::GenerationDefaults::default()),
            limits: config.limits.clone(),
        })),
        build: Arc::new(move |device| {
            let model = ScriptedModel::new(script.clone(), scripted::sleep())?;
            Ok(Box::new(model.on_device(device)) as Box<dyn Model>)
        }),
    })
}

fn prepare_scripted_images(config: &ModelConfig, script: Script) -> PreparedModel {
    PreparedModel {
        intake: Intake::Image(ImageIntake {
            frontend: Arc::new(ScriptedFrontend),
            size_factor: scripted::SIZE_FACTOR,
            defaults: ImageDefaults::default().within(&config.image_limits, scripted::SIZE_FACTOR),
            limits: config.image_limits.clone(),
        }),
        build: Arc::new(move |_| {
            let model = ScriptedImageModel::new(script.clone(), scripted::sleep())?;
            Ok(Box::new(model) as Box<dyn Model>)
        }),
    }
}

fn prepare_images(config: &ModelConfig, files: &ImageFiles) -> anyhow::Result<PreparedModel> {
    let assets = diffusion::loader::load_files(files)?;
    let (devices, options) = (config.devices.clone(), config.diffusion.clone());
    let step_budget = config.engine.scheduler.step_budget;
    let neutral = ImageDefaults::default();
    let known = match &config.model {
        ModelRef::Bundled(model) => manifest::ImageDefaults {
            steps: Some(model.steps),
            guidance_scale: Some(model.guidance_scale),
            ..manifest::ImageDefaults::default()
        },
        ModelRef::KnownImage(manifest) => manifest.defaults.clone(),
        _ => manifest::ImageDefaults::default(),
    };
    let (width, height) = assets.size;
    let (width, height) = (known.width.unwrap_or(width), known.height.unwrap_or(height));
    Ok(PreparedModel {
        intake: Intake::Image(ImageIntake {
            frontend: Arc::clone(&assets.frontend) as Arc<dyn ImageFrontend>,
            size_factor: assets.size_factor,
            defaults: ImageDefaults {
                width,
                height,
                steps: config
                    .default_steps
                    .or(known.steps)
                    .or(assets.advice.steps)
                    .unwrap_or(neutral.steps),
                guidance_scale: config
                    .default_guidance_scale
                    .or(known.guidance_scale)
                    .or(assets.advice.guidance_scale)
                    .unwrap_or(neutral.guidance_scale),
                ..neutral
            }
            .within(&config.image_limits, assets.size_factor),
            limits: config.image_limits.clone(),
        }),
        build: Arc::new(move |device| {
            let device = devices[device.index()];
            let mut model = diffusion::loader::build(&assets, device, &options)?;
            let clock = RealClock::start();
            limit_pass(&mut model, assets.size, &options, step_budget, &clock)?;
            Ok(Box::new(model) as Box<dyn Model>)
        }),
    })
}

fn prepare_text(config: &ModelConfig, files: &ModelFiles) -> anyhow::Result<PreparedModel> {
    let assets = loader::load_assets(files)?;
    let (devices, options) = (config.devices.clone(), config.text.clone());
    // What every device can serve.
    let mut max_context = u32::MAX;
    for device in &devices {
        max_context = max_context.min(assets.served_context(&options, *device)?);
    }
    let fallback = match config.load_format {
        LoadFormat::Auto => None,
        LoadFormat::Dummy { .. } => Some(PLAIN_TEMPLATE),
    };
    Ok(PreparedModel {
        intake: Intake::Text(Box::new(TextIntake {
            tokenizer: Arc::clone(&assets.tokenizer),
            template: template(&assets.tokenizer, fallback)?,
            max_context,
            defaults: defaults(config, &assets.defaults),
            limits: config.limits.clone(),
        })),
        build: Arc::new(move |device| loader::build(&assets, devices[device.index()], &options)),
    })
}

/// The model's own template, else `fallback`. A model without one cannot chat, and says so.
fn template(
    tokenizer: &TextTokenizer,
    fallback: Option<&str>,
) -> anyhow::Result<Option<ChatTemplate>> {
    let Some(source) = tokenizer.chat_template_source().or(fallback) else {
        return Ok(None);
    };
    let bos = tokenizer.bos_text().unwrap_or_default();
    let eos = tokenizer.eos_text().unwrap_or_default();
    let template = ChatTemplate::new(source, bos, eos).context("the model's chat template")?;
    Ok(Some(template))
}

/// The manifest's word, else that of the model's makers, else the neutral value.
fn defaults(config: &ModelConfig, makers: &loader::GenerationDefaults) -> TextDefaults {
    let manifest = match &config.model {
        ModelRef::Known(manifest) => manifest.defaults.clone(),
        _ => GenerationDefaults::default(),
    };
    let neutral = TextDefaults::default();
    let number = |first: Option<f32>, second: Option<f32>, last| first.or(second).unwrap_or(last);
    TextDefaults {
        temperature: number(
            manifest.temperature,
            makers.temperature,
            neutral.temperature,
        ),
        top_p: number(manifest.top_p, makers.top_p, neutral.top_p),
        top_k: manifest.top_k.or(makers.top_k).unwrap_or(neutral.top_k),
        min_p: number(manifest.min_p, makers.min_p, neutral.min_p),
        typical_p: makers.typical_p.unwrap_or(neutral.typical_p),
        repetition_penalty: number(
            manifest.repetition_penalty,
            makers.repetition_penalty,
            neutral.repetition_penalty,
        ),
        max_tokens: config.default_max_tokens.or(manifest.max_tokens),
    }
}

async fn listen_and_serve(
    config: &Config,
    keys: ApiKeys,
    prepared: Vec<PreparedModel>,
) -> anyhow::Result<()> {
    let mut signals = Signals::catch().context("cannot catch signals")?;
    if config.stop_with_stdin {
        signals = signals
            .with_stdin()
            .context("cannot wait for the end of stdin")?;
    }
    let listener =
        listen(config.listen).with_context(|| format!("cannot listen on {}", config.listen))?;
    let address = listener.local_addr().context("cannot tell the address")?;
    let clock = Arc::new(RealClock::start());
    let names = || config.models.iter().map(|model| model.name.as_str());
    let devices: Vec<_> = config.models.iter().map(|m| m.device_names()).collect();
    let mut metrics = Metrics::new(names().zip(devices.iter().map(|names| &names[..])));
    if config.admin_key_file.is_some() {
        let clock = Arc::clone(&clock) as Arc<dyn Clock>;
        metrics = metrics.with_history(names(), clock, config.admin_history);
    }
    let metrics = Arc::new(metrics);
    let models = start_engines(config, prepared, &clock, &metrics);
    let engines: Vec<EngineHandle> = models.iter().map(|model| model.engine.clone()).collect();
    let store = EventStore::new(
        config.retention.clone(),
        Arc::clone(&clock) as Arc<dyn Clock>,
    );
    let state = AppState::new(
        models,
        Arc::new(store),
        Arc::clone(&clock),
        config.edge.clone(),
        keys,
        metrics,
    );
    say(&format!("listening on http://{address}"))?;

    let (drained, all_stopped) = oneshot::channel();
    let stop = async {
        // The other end is dropped only when the service is being stopped anyway.
        let left: Duration = all_stopped.await.unwrap_or_default();
        left.max(LINGER)
    };
    tokio::select! {
        () = serve(listener, state, stop) => Ok(()),
        () = on_signals(signals, &engines, clock.as_ref(), config.drain_timeout, drained) => Ok(()),
        failure = first_load_failure(&engines) => Err(failure),
    }
}

fn start_engines(
    config: &Config,
    prepared: Vec<PreparedModel>,
    clock: &Arc<RealClock>,
    metrics: &Arc<Metrics>,
) -> Vec<Arc<ServedModel>> {
    let created = unix_seconds();
    let start = |(model, prepared): (&ModelConfig, PreparedModel)| {
        let engine = engine::spawn_on_devices(
            &model.name,
            model.engine.clone(),
            Arc::clone(clock) as Arc<dyn Clock>,
            Arc::clone(metrics) as Arc<dyn engine::Observer>,
            device_engines(model, &prepared.build, config.compute_threads),
        );
        Arc::new(ServedModel {
            name: model.name.clone(),
            created,
            engine,
            intake: prepared.intake,
        })
    };
    config.models.iter().zip(prepared).map(start).collect()
}

/// The engines of a model, each with its device. Several on the processor have their shares of its threads.
fn device_engines(
    model: &ModelConfig,
    build: &Arc<Build>,
    compute_threads: usize,
) -> Vec<DeviceEngine> {
    let processors = model.processors();
    let mut threads_left = compute_threads;
    let mut processors_left = processors;
    let names = model.device_names().into_iter().zip(&model.devices);
    (0..)
        .map(DeviceNumber)
        .zip(names)
        .map(|(number, (name, device))| {
            let mut own_threads = None;
            if processors > 1 && *device == DeviceSpec::Cpu {
                let share = threads_left.div_ceil(processors_left);
                threads_left -= share;
                processors_left -= 1;
                own_threads = Some(share);
            }
            let build = Arc::clone(build);
            DeviceEngine {
                name,
                build: Box::new(move || {
                    if let Some(threads) = own_threads {
                        use_own_threads(threads);
                    }
                    build(number)
                }),
            }
        })
        .collect()
}

/// One model that cannot be loaded ends the start, also when others could: a service that lacks
/// what it was told to serve should not look as if it had come up. Never returns if all load.
async fn first_load_failure(engines: &[EngineHandle]) -> anyhow::Error {
    for engine in engines {
        match engine.until_started().await {
            EngineState::Failed(reason) => {
                return anyhow::anyhow!("model {}: {reason}", engine.model());
            }
            state => tracing::info!(model = engine.model(), ?state, "model loaded"),
        }
    }
    std::future::pending().await
}

fn bench_engine(options: &EngineBench, config: &Config) -> anyhow::Result<()> {
    let report = bench::engine::run(options, config)?;
    let json = serde_json::to_string_pretty(&report).context("cannot write the report as JSON")?;
    // Measuring took minutes: if one place cannot be written to, the other still gets its report.
    let shown = match options.format {
        ReportFormat::Table => say(report.table().trim_end()),
        ReportFormat::Json => say(&json),
    };
    let kept = match &options.json {
        Some(path) => std::fs::write(path, json + "\n")
            .with_context(|| format!("cannot write --json {}", path.display())),
        None => Ok(()),
    };
    shown.and(kept)
}

fn task_of(options: &LoadOptions) -> Task {
    Preset::named(&options.preset).map_or(Task::Text, |preset| preset.task)
}

/// What a service of our own is started with: the flags of this command, and the model that the load is for.
fn serve_with(
    options: &LoadOptions,
    config: &Config,
    mut variables: Vec<(String, String)>,
) -> Vec<(String, String)> {
    if config.models_by_default {
        let model = match task_of(options) {
            Task::Text => "smollm2-135m-instruct",
            Task::Image => "tiny-sd",
        };
        variables.push(("GIRANDOLE_MODEL".to_owned(), model.to_owned()));
    }
    variables
}

/// The answer goes to stdout, all of it to where it was asked for: also of a measurement that a signal has ended.
fn measure(
    task: Task,
    files: &ReportFiles,
    measured: impl FnOnce(&mut LiveWatcher) -> Result<BenchReport, RunError>,
) -> anyhow::Result<()> {
    let stop = Stop::on_signals().context("cannot catch signals")?;
    let mut watcher = LiveWatcher::start(task, stop.clone());
    let report = measured(&mut watcher);
    watcher.finish();
    tell_report(&report?, files)?;
    anyhow::ensure!(
        !stop.is_wanted(),
        "stopped: only what was measured until then has been reported"
    );
    Ok(())
}

fn tell_report(report: &BenchReport, files: &ReportFiles) -> anyhow::Result<()> {
    // Measuring took minutes: if one place cannot be written to, the others still get their report.
    let shown = match &report.capacity {
        Some(capacity) => say(&capacity.sentence),
        None => say(render::markdown(report).trim_end()),
    };
    let kept = render::write(report, files);
    shown?;
    Ok(kept?)
}

/// Reports that cannot be read are as unusable as those that cannot be compared.
fn compare_reports(options: &CompareOptions) -> ExitCode {
    let unusable = Judgement::Unusable.exit_code();
    let (before, after) = match (render::read(&options.before), render::read(&options.after)) {
        (Ok(before), Ok(after)) => (before, after),
        (Err(error), _) | (_, Err(error)) => return complain(&error.to_string(), unusable),
    };
    let found = compare(&before, &after, options.allowed);
    let text = match options.json {
        true => serde_json::to_string_pretty(&found).map_err(anyhow::Error::from),
        false => Ok(found.table(options.all)),
    };
    match text.and_then(|text| say(text.trim_end())) {
        Ok(()) => ExitCode::from(found.judgement.exit_code()),
        Err(error) => complain(&format!("{error:#}"), unusable),
    }
}

fn check_card(options: &GpuCheck) -> ExitCode {
    let report = match gpu_check::run(options) {
        Ok(report) => report,
        Err(error) => return complain(&error.to_string(), 2),
    };
    let shown = say(report.table().trim_end());
    let kept = match &options.json {
        Some(path) => serde_json::to_string_pretty(&report)
            .map_err(anyhow::Error::from)
            .and_then(|json| {
                std::fs::write(path, json + "\n")
                    .with_context(|| format!("cannot write --json {}", path.display()))
            }),
        None => Ok(()),
    };
    match shown.and(kept) {
        Ok(()) if report.is_well() => ExitCode::SUCCESS,
        Ok(()) => ExitCode::FAILURE,
        Err(error) => complain(&format!("{error:#}"), 1),
    }
}

fn write_report(options: &ReportOptions) -> anyhow::Result<()> {
    let report = render::read(&options.report)?;
    if options.files == ReportFiles::default() {
        return say(render::markdown(&report).trim_end());
    }
    Ok(render::write(&report, &options.files)?)
}

fn look_after_models(command: &ModelsCommand, config: &Config) -> anyhow::Result<()> {
    match command {
        ModelsCommand::List => list_models(config),
        ModelsCommand::Pull(name) => {
            let model = ModelRef::parse(name, &config.catalogue)?;
            match sources::fetch(&model, LoadFormat::Auto, &config.sources)? {
                ModelFiles::Gguf(path)
                | ModelFiles::Folder(path)
                | ModelFiles::Checkpoint { file: path, .. } => {
                    say(&format!("{name} is in {}", path.display()))
                }
                ModelFiles::Dummy { .. } | ModelFiles::Scripted(_) => {
                    say(&format!("{name} needs no files"))
                }
            }
        }
        ModelsCommand::Verify(name) if name == "all" => {
            let here = |manifest: &&Manifest| sources::locate(manifest, &config.sources).is_some();
            let mut all_good = true;
            for manifest in config.catalogue.iter().filter(here) {
                all_good &= verify(manifest, config)?;
            }
            anyhow::ensure!(all_good, "a model is damaged");
            Ok(())
        }
        ModelsCommand::Verify(name) => {
            let ModelRef::Known(manifest) = ModelRef::parse(name, &config.catalogue)? else {
                anyhow::bail!("{name} has no manifest, so there is no digest to compare with");
            };
            anyhow::ensure!(verify(&manifest, config)?, "{name} is not as it should be");
            Ok(())
        }
    }
}

fn list_models(config: &Config) -> anyhow::Result<()> {
    say(&format!(
        "{:<28} {:<6} {:>9}  {}",
        "NAME", "TASK", "SIZE", "WHERE"
    ))?;
    for manifest in config.catalogue.iter() {
        let place = match sources::locate(manifest, &config.sources) {
            Some(path) => path.display().to_string(),
            None => "not here; fetched when served, or by `models pull`".to_owned(),
        };
        let megabytes = manifest.file.size_bytes as f64 / 1e6;
        say(&format!(
            "{:<28} {:<6} {megabytes:>6.0} MB  {place}",
            manifest.name,
            manifest.task.to_string()
        ))?;
    }
    for manifest in config.catalogue.images() {
        let place = match sources::locate_image(manifest, &config.sources) {
            Some(path) => path.display().to_string(),
            None => format!("not here; fetched from hf:{} when served", manifest.repo),
        };
        say(&format!(
            "{:<28} {:<6} {:>9}  {place}",
            manifest.name, "image", "?"
        ))?;
    }
    for model in &BUNDLED {
        let megabytes = model.size_bytes() as f64 / 1e6;
        say(&format!(
            "{:<28} {:<6} {megabytes:>6.0} MB  in the program",
            model.name, "image"
        ))?;
    }
    Ok(())
}

/// Says how one model's file is; whether it is the right one.
fn verify(manifest: &Manifest, config: &Config) -> anyhow::Result<bool> {
    let (path, verdict) = sources::verify(manifest, &config.sources);
    let (name, path) = (&manifest.name, path.display());
    match verdict {
        Verdict::Good => say(&format!("{name}: good, {path}"))?,
        Verdict::Missing => say(&format!("{name}: not here"))?,
        Verdict::Damaged(ref why) => say(&format!("{name}: damaged, {path} {why}"))?,
    }
    Ok(verdict == Verdict::Good)
}
