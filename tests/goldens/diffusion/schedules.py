"""Trajectories of diffusers' noise schedulers over a stub model, as `schedules.json`.

The stub model answers `0.1 * input + sin(timestep)`, where `input` is the latent after `scale_model_input`. The latent is
a vector of 4. Everything is computed in f64: each scheduler's own source is loaded a second time with float32 replaced
by float64 (diffusers rounds its tables to f32), so a correct implementation in f64 agrees to about 1e-9 relative.
`stock` in each run says how far the unchanged f32 scheduler lies from the f64 one.

Format of schedules.json, all numbers with 12 significant digits:

    start    [4]       initial noise; the latent of a run without `strength` begins at start * init_noise_sigma (flow: start)
    image    [4]       the clean latent that a run with `strength` noises
    noise    [50][4]   what step i draws, when it draws: noise[i], i counted from the first timestep of the schedule
    schedules          a list, each:
      name             class and what differs from the first of the class
      config           scheduler_config.json of diffusers, `_class_name` included
      eta              given to DDIM's step; absent elsewhere
      mu               given to set_timesteps when use_dynamic_shifting; absent elsewhere
      sigmas_argument  true when set_timesteps was given sigmas = linspace(1, 1/n, n), as the Flux pipeline does;
                       absent when it was given n alone
      runs             a list, each:
        steps            n given to set_timesteps
        strength         absent for text to image
        first            index of the first timestep that is run (0 without strength)
        timesteps        [n]     of the whole schedule, before `first` is applied
        sigmas           [n+1]   same; absent for the schedulers that have none (DDIM, DDPM, LCM)
        init_noise_sigma
        input_scale      [n - first]  what scale_model_input multiplies by; absent when always 1
        begin            [4]     the latent before the first step
        x                [[i, [4]], ..]  the latent after step i (counted as in `noise`): every step up to n = 20, above
                         that every fifth and the last
        stock            largest relative difference (by the largest |x| of a step) to the stock f32 scheduler
"""

import importlib.util
import json
import math
import pathlib

import diffusers
import numpy
import torch

STEPS = [1, 4, 7, 20, 30, 50]
STRENGTHS = [0.3, 0.6, 1.0]
STRENGTH_STEPS = [4, 7, 20]
EVERY_STEP_UP_TO = 20
SEED = 20261121

FILES = dict(
    DDIMScheduler="ddim",
    DDPMScheduler="ddpm",
    EulerDiscreteScheduler="euler_discrete",
    EulerAncestralDiscreteScheduler="euler_ancestral_discrete",
    DPMSolverMultistepScheduler="dpmsolver_multistep",
    UniPCMultistepScheduler="unipc_multistep",
    LCMScheduler="lcm",
    FlowMatchEulerDiscreteScheduler="flow_match_euler_discrete",
)
STABLE = dict(beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear")
LEADING = dict(STABLE, timestep_spacing="leading", steps_offset=1)
ZERO_SNR = dict(rescale_betas_zero_snr=True, prediction_type="v_prediction", timestep_spacing="trailing")
COSINE = dict(beta_schedule="squaredcos_cap_v2")

# Class -> the base configuration, then what each variant changes. `_` keys are arguments of the run.
VARIANTS = dict(
    DDIMScheduler=(
        dict(LEADING, clip_sample=False, set_alpha_to_one=False),
        dict(
            eta=dict(_eta=1.0),
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace"),
            offset_0=dict(steps_offset=0),
            alpha_to_one=dict(set_alpha_to_one=True),
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            v_eta=dict(prediction_type="v_prediction", _eta=1.0, timestep_spacing="trailing"),
            clip=dict(clip_sample=True),
            clip_range=dict(clip_sample=True, clip_sample_range=2.0, _eta=0.5),
            zero_snr=ZERO_SNR,
            cosine=COSINE,
            linear=dict(beta_schedule="linear", beta_start=0.0001, beta_end=0.02),
        ),
    ),
    DDPMScheduler=(
        dict(LEADING, clip_sample=False, variance_type="fixed_small"),
        dict(
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace"),
            offset_0=dict(steps_offset=0),
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            clip=dict(clip_sample=True),
            large=dict(variance_type="fixed_large"),
            zero_snr=ZERO_SNR,
            cosine=COSINE,
        ),
    ),
    EulerDiscreteScheduler=(
        dict(LEADING),
        dict(
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace"),
            offset_0=dict(steps_offset=0),
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            karras=dict(use_karras_sigmas=True),
            karras_v=dict(use_karras_sigmas=True, prediction_type="v_prediction"),
            exponential=dict(use_exponential_sigmas=True),
            log_linear=dict(interpolation_type="log_linear"),
            sigma_min=dict(final_sigmas_type="sigma_min"),
            zero_snr=ZERO_SNR,
            cosine=COSINE,
        ),
    ),
    EulerAncestralDiscreteScheduler=(
        dict(LEADING),
        dict(
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace"),
            offset_0=dict(steps_offset=0),
            v=dict(prediction_type="v_prediction"),
            zero_snr=ZERO_SNR,
            cosine=COSINE,
        ),
    ),
    DPMSolverMultistepScheduler=(
        dict(LEADING, algorithm_type="dpmsolver++", solver_order=2),
        dict(
            karras=dict(use_karras_sigmas=True),
            karras_v=dict(use_karras_sigmas=True, prediction_type="v_prediction"),
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace", steps_offset=0),
            offset_0=dict(steps_offset=0),
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            order_1=dict(solver_order=1),
            order_3=dict(solver_order=3),
            heun=dict(solver_type="heun"),
            keep_order=dict(lower_order_final=False),
            euler_at_final=dict(euler_at_final=True),
            sigma_min=dict(final_sigmas_type="sigma_min"),
            dpmsolver=dict(algorithm_type="dpmsolver", final_sigmas_type="sigma_min"),
            sde=dict(algorithm_type="sde-dpmsolver++"),
            sde_karras=dict(algorithm_type="sde-dpmsolver++", use_karras_sigmas=True),
            zero_snr=ZERO_SNR,
            cosine=dict(COSINE, lambda_min_clipped=-5.1),
        ),
    ),
    UniPCMultistepScheduler=(
        dict(LEADING, solver_order=2, solver_type="bh2"),
        dict(
            karras=dict(use_karras_sigmas=True),
            karras_v=dict(use_karras_sigmas=True, prediction_type="v_prediction"),
            trailing=dict(timestep_spacing="trailing"),
            linspace=dict(timestep_spacing="linspace", steps_offset=0),
            offset_0=dict(steps_offset=0),
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            order_1=dict(solver_order=1),
            order_3=dict(solver_order=3),
            bh1=dict(solver_type="bh1", final_sigmas_type="sigma_min"),
            keep_order=dict(lower_order_final=False, final_sigmas_type="sigma_min"),
            noise_space=dict(predict_x0=False, final_sigmas_type="sigma_min"),
            no_corrector=dict(disable_corrector=[0, 1]),
            sigma_min=dict(final_sigmas_type="sigma_min"),
            zero_snr=ZERO_SNR,
            cosine=COSINE,
        ),
    ),
    LCMScheduler=(
        dict(STABLE, clip_sample=False, set_alpha_to_one=True, original_inference_steps=50),
        dict(
            v=dict(prediction_type="v_prediction"),
            sample=dict(prediction_type="sample"),
            alpha_to_zeroth=dict(set_alpha_to_one=False),
            original_100=dict(original_inference_steps=100),
            clip=dict(clip_sample=True),
            scaling=dict(timestep_scaling=3.0),
            zero_snr=dict(rescale_betas_zero_snr=True, prediction_type="v_prediction"),
        ),
    ),
    FlowMatchEulerDiscreteScheduler=(
        dict(shift=1.0),
        dict(
            flux_schnell=dict(_sigmas=True),
            flux_dev=dict(_sigmas=True, _mu=0.8, use_dynamic_shifting=True, shift=3.0),
            linear_shift=dict(_sigmas=True, _mu=0.8, use_dynamic_shifting=True, time_shift_type="linear"),
            sd3=dict(shift=3.0),
            terminal=dict(_sigmas=True, shift=3.0, shift_terminal=0.02),
            karras=dict(shift=3.0, use_karras_sigmas=True),
            stochastic=dict(shift=3.0, stochastic_sampling=True),
        ),
    ),
)
WITH_STRENGTH = ["", "karras", "v", "zero_snr", "linspace", "sd3", "flux_schnell", "stochastic", "eta"]


def load(name, double):
    """Returns the scheduler class `name`, in f64 throughout when `double`, from a module of its own."""
    package = pathlib.Path(diffusers.__file__).parent / "schedulers"
    path = package / f"scheduling_{FILES[name]}.py"
    spec = importlib.util.spec_from_file_location(f"diffusers.schedulers.{'double' if double else 'stock'}_{FILES[name]}", path)
    module = importlib.util.module_from_spec(spec)
    source = path.read_text()
    if double:
        source = source.replace("torch.float32", "torch.float64").replace("np.float32", "np.float64")
    exec(compile(source, str(path), "exec"), module.__dict__)
    return module, getattr(module, name)


class Noise:
    """Stands in for `randn_tensor`: answers the row that `step` says."""

    def __init__(self, rows):
        self.rows = rows
        self.step = None

    def __call__(self, shape, generator=None, device=None, dtype=None, layout=None):
        assert math.prod(shape) == self.rows.shape[1], shape
        return self.rows[self.step].to(dtype).reshape(tuple(shape))


def first_index(flow, steps, strength):
    """The img2img pipelines' `get_timesteps`: Stable Diffusion's rounds the steps down, SD3's and Flux' the start."""
    if flow:
        return int(max(steps - min(steps * strength, steps), 0))
    return max(steps - min(int(steps * strength), steps), 0)


def run(module, kind, config, steps, strength, arguments, data, dtype):
    torch.set_default_dtype(dtype)
    scheduler = kind.from_config(config)
    flow = kind.__name__.startswith("Flow")
    noise = Noise(data["noise"])
    module.randn_tensor = noise
    extra = {}
    if "_mu" in arguments:
        extra["mu"] = arguments["_mu"]
    if "_sigmas" in arguments:
        extra["sigmas"] = numpy.linspace(1.0, 1.0 / steps, steps)
        scheduler.set_timesteps(**extra)
    else:
        scheduler.set_timesteps(steps, **extra)
    timesteps = scheduler.timesteps
    assert len(timesteps) == steps, (kind, len(timesteps), steps)
    first = first_index(flow, steps, strength) if strength is not None else 0
    if first == steps:
        return None
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(first)
    start, image = data["start"].to(dtype), data["image"].to(dtype)
    init = 1.0 if flow else float(scheduler.init_noise_sigma)
    if strength is None:
        x = start * init
    elif flow:
        x = scheduler.scale_noise(image[None], timesteps[first : first + 1], start[None])[0]
    else:
        x = scheduler.add_noise(image[None], start[None], timesteps[first : first + 1])[0]
    result = dict(steps=steps)
    if strength is not None:
        result["strength"] = strength
    result.update(first=first, timesteps=timesteps.tolist())
    if hasattr(scheduler, "sigmas") and not kind.__name__.startswith(("DDIM", "DDPM", "LCM")):
        result["sigmas"] = scheduler.sigmas.tolist()
    result["init_noise_sigma"] = init
    scales, rows = [], []
    begin = x
    for i in range(first, steps):
        t = timesteps[i]
        noise.step = i
        scaled = x if flow else scheduler.scale_model_input(x, t)
        scales.append(float((scaled / x)[0]))
        # Shape [1, 4]: some schedulers want a batch dimension.
        output = (0.1 * scaled + math.sin(float(t)))[None]
        step = dict(eta=arguments["_eta"]) if "_eta" in arguments else {}
        x = scheduler.step(output, t, x[None], return_dict=False, **step)[0][0]
        assert torch.isfinite(x).all(), (kind, config, steps, i)
        rows.append([i, x.tolist()])
    if any(scale != 1.0 for scale in scales):
        result["input_scale"] = scales
    result["begin"] = begin.tolist()
    result["x"] = rows
    return result


def difference(ours, stock):
    """Largest relative difference of the latents; infinite when the timesteps differ."""
    if any(abs(a - b) > 1e-2 for a, b in zip(ours["timesteps"], stock["timesteps"])):
        return math.inf
    worst = 0.0
    for (_, a), (_, b) in zip(ours["x"], stock["x"]):
        size = max(abs(value) for value in a)
        worst = max(worst, max(abs(p - q) for p, q in zip(a, b)) / size)
    return worst


def rounded(value):
    if isinstance(value, float):
        return int(value) if value == int(value) and abs(value) < 1e6 else float(f"{value:.12g}")
    if isinstance(value, list):
        return [rounded(item) for item in value]
    if isinstance(value, dict):
        return {key: rounded(item) for key, item in value.items()}
    return value


def make(home):
    generator = numpy.random.default_rng(SEED)
    # Rounded first, so that the file holds exactly what was used.
    table = numpy.array(rounded(generator.standard_normal((max(STEPS) + 2, 4)).tolist()))
    start, image, noise = table[0], table[1], table[2:]
    data = dict(start=torch.tensor(start), image=torch.tensor(image), noise=torch.tensor(noise))
    schedules = []
    worst = []
    for name, (base, variants) in VARIANTS.items():
        stock_module, stock_kind = load(name, False)
        module, kind = load(name, True)
        for variant, changes in {"": {}, **variants}.items():
            arguments = {key: value for key, value in changes.items() if key.startswith("_")}
            config = dict(base, **{key: value for key, value in changes.items() if not key.startswith("_")})
            settings = {key: value for key, value in kind(**config).config.items() if not key.startswith("_")}
            full = {"_class_name": name, **settings}
            if full.get("lambda_min_clipped") == -math.inf:
                del full["lambda_min_clipped"]  # the default; JSON has no word for it
            entry = dict(name=f"{name} {variant}".strip(), config=full)
            for key, field in [("_eta", "eta"), ("_mu", "mu"), ("_sigmas", "sigmas_argument")]:
                if key in arguments:
                    entry[field] = arguments[key]
            # diffusers divides by zero when it stretches a single step to a terminal sigma.
            plan = [(steps, None) for steps in STEPS if steps > 1 or variant != "terminal"]
            if variant in WITH_STRENGTH:
                plan += [(steps, strength) for steps in STRENGTH_STEPS for strength in STRENGTHS]
            runs = []
            for steps, strength in plan:
                ours = run(module, kind, config, steps, strength, arguments, data, torch.float64)
                if ours is None:
                    continue
                stock = run(stock_module, stock_kind, config, steps, strength, arguments, data, torch.float32)
                ours["stock"] = float(f"{difference(ours, stock):.2g}")
                worst.append((ours["stock"], entry["name"], steps, strength))
                if steps > EVERY_STEP_UP_TO:
                    ours["x"] = [row for row in ours["x"] if row[0] % 5 == 4 or row[0] == steps - 1]
                # Above that, f64 is no longer the same schedule: exponential spacing in DPM-Solver and UniPC truncates its
                # timesteps to whole numbers where 998.99998 and 999 are equally right, hence is not among the variants.
                assert ours["stock"] < 2e-3, (entry["name"], steps, strength)
                runs.append(ours)
            entry["runs"] = runs
            schedules.append(entry)
    torch.set_default_dtype(torch.float32)
    golden = dict(start=start.tolist(), image=image.tolist(), noise=noise.tolist(), schedules=schedules)
    path = home / "schedules.json"
    lines = json.dumps(rounded(golden), separators=(",", ":")).replace('{"name"', '\n{"name"').replace('{"steps"', '\n{"steps"')
    path.write_text(lines + "\n")
    worst.sort(key=lambda item: item[0], reverse=True)
    print(f"{len(schedules)} schedules, {len(worst)} runs, {path.stat().st_size} bytes; furthest from the stock f32:")
    for item in worst[:25]:
        print("  ", *item)
