import numpy as np
import pytest
import torch
from diffusers import FlowMatchEulerDiscreteScheduler, UniPCMultistepScheduler

from wan.errors import InvalidRequest
from wan.samplers import SAMPLERS, SamplerState, Schedule, schedule, shifted


def toy_velocity(x, sigma):
    return torch.tanh(1.5 * x) + 0.3 * sigma


def run(sampler, steps, shift, start=(1.0, -0.5), grid="wan"):
    plan = schedule(sampler, steps, shift, grid)
    state = SamplerState(torch.tensor(start, dtype=torch.float64))
    for i in range(steps):
        state = SAMPLERS[sampler](state, toy_velocity(state.latents, plan.sigmas[i]), plan.sigmas, i)
    return state.latents


# Computed once with the official solvers on the toy velocity above.
PUBLISHED = [
    ("unipc", 4, 5, [0.02995068, -0.17364156]),
    ("unipc", 8, 3, [0.1862446, -0.1844551]),
    ("unipc", 20, 5, [0.2102534, -0.1866021]),
    ("unipc", 50, 5, [0.2241456, -0.1880646]),
    ("dpm++", 4, 5, [0.0273727, -0.1735867]),
    ("dpm++", 20, 5, [0.2101286, -0.1865553]),
]


@pytest.mark.parametrize(("sampler", "steps", "shift", "expected"), PUBLISHED)
def test_solvers_reproduce_the_official_ones(sampler, steps, shift, expected):
    torch.testing.assert_close(
        run(sampler, steps, shift), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-6
    )


@pytest.mark.parametrize("steps", [1, 2, 3, 20])
def test_unipc_follows_the_diffusers_scheduler(steps):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=3.0)
    scheduler.set_timesteps(steps)
    plan = schedule("unipc", steps, 3.0, "diffusers")
    assert list(plan.timesteps) == scheduler.timesteps.tolist()
    torch.testing.assert_close(torch.tensor(plan.sigmas), scheduler.sigmas, rtol=0, atol=2e-6)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    state = SamplerState(x)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy_velocity(x, plan.sigmas[i]), t, x, return_dict=False)[0]
        state = SAMPLERS["unipc"](state, toy_velocity(state.latents, plan.sigmas[i]), plan.sigmas, i)
    torch.testing.assert_close(state.latents, x, rtol=0, atol=1e-3)


def test_euler_follows_the_diffusers_scheduler():
    plan = schedule("euler", 20, 5.0)
    scheduler = FlowMatchEulerDiscreteScheduler()
    scheduler.set_timesteps(sigmas=list(plan.sigmas[:-1]))
    torch.testing.assert_close(torch.tensor(plan.timesteps), scheduler.timesteps, rtol=0, atol=1e-3)
    x = torch.randn(4, 16, generator=torch.Generator().manual_seed(0))
    state = SamplerState(x)
    for i, t in enumerate(scheduler.timesteps):
        x = scheduler.step(toy_velocity(x, plan.sigmas[i]), t, x, return_dict=False)[0]
        state = SAMPLERS["euler"](state, toy_velocity(state.latents, plan.sigmas[i]), plan.sigmas, i)
    torch.testing.assert_close(state.latents, x, rtol=0, atol=1e-3)


@pytest.mark.parametrize(
    ("steps", "shift", "timesteps"),
    [
        (4, 5, [999, 937, 833, 624]),
        (8, 3, [999, 954, 899, 832, 749, 642, 499, 299]),
    ],
)
def test_official_timesteps(steps, shift, timesteps):
    assert list(schedule("unipc", steps, shift).timesteps) == timesteps


SHIFTS = (0.5, 1, 1.5, 2, 2.5, 3, 3.5, 4, 5, 6, 7, 8, 9, 10, 11, 12, 16)


def official_timesteps(start, steps, shift):
    """The official formulas in numpy: a float64 grid from `start` to 0 without its last point, shifted, cut."""
    base = np.linspace(start, 0.0, steps + 1)[:-1]
    return (1000 * (shift * base / (1 + (shift - 1) * base))).astype(np.int64).tolist()


@pytest.mark.parametrize(
    ("sampler", "start"), [("unipc", np.float32(0.999).item()), ("dpm++", 1.0)], ids=["unipc", "dpm++"]
)
def test_every_official_schedule_has_the_integer_timesteps_of_numpy(sampler, start):
    wrong = [
        (steps, shift)
        for shift in SHIFTS
        for steps in range(1, 101)
        if list(schedule(sampler, steps, shift).timesteps) != official_timesteps(start, steps, shift)
    ]
    assert not wrong


def test_every_schedule_of_the_diffusers_grid_is_that_of_diffusers():
    wrong = []
    for shift in SHIFTS:
        scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
        for steps in range(1, 101):
            scheduler.set_timesteps(steps)
            ours = schedule("unipc", steps, shift, "diffusers")
            same = list(ours.timesteps) == scheduler.timesteps.tolist()
            if not same or np.abs(np.array(ours.sigmas) - scheduler.sigmas.numpy()).max() > 1e-7:
                wrong.append((steps, shift))
    assert not wrong


def test_last_timesteps_of_the_longest_official_schedules():
    assert list(schedule("unipc", 50, 5).timesteps)[-5:] == [405, 356, 302, 241, 172, 92][-5:]
    assert list(schedule("unipc", 40, 12).timesteps)[-3:] == [492, 386, 235]


@pytest.mark.parametrize(
    ("steps", "shift", "strength"), [(20, 5.0, 0.6), (50, 3.0, 0.8), (10, 5.0, 0.35), (8, 5.0, 0.3)]
)
def test_unipc_on_a_truncated_schedule_follows_diffusers_started_in_the_middle(steps, shift, strength):
    scheduler = UniPCMultistepScheduler(prediction_type="flow_prediction", use_flow_sigmas=True, flow_shift=shift)
    scheduler.set_timesteps(steps)
    first = steps - int(steps * strength)  # as diffusers' WanVideoToVideoPipeline
    scheduler.set_begin_index(first)
    plan = schedule("unipc", steps, shift, "diffusers").truncated(first)
    assert list(plan.timesteps) == scheduler.timesteps[first:].tolist()
    generator = torch.Generator().manual_seed(0)
    x0, noise = torch.randn(2, 4, 16, generator=generator)
    x = scheduler.add_noise(x0, noise, scheduler.timesteps[first : first + 1].expand(4))
    state = SamplerState((1 - plan.sigmas[0]) * x0 + plan.sigmas[0] * noise)
    torch.testing.assert_close(state.latents, x, rtol=0, atol=1e-6)
    for i, t in enumerate(scheduler.timesteps[first:]):
        x = scheduler.step(toy_velocity(x, plan.sigmas[i]), t, x, return_dict=False)[0]
        state = SAMPLERS["unipc"](state, toy_velocity(state.latents, plan.sigmas[i]), plan.sigmas, i)
    torch.testing.assert_close(state.latents, x, rtol=0, atol=1e-5)


def test_a_few_listed_levels_are_a_schedule():
    plan = Schedule.of([shifted(level, 5.0) for level in (1.0, 0.75, 0.5, 0.25)], whole_timesteps=False)
    assert plan.timesteps == pytest.approx([1000, 937.5, 833.3333, 625])
    assert plan == schedule("euler", 4, 5.0)


@pytest.mark.parametrize("start", [-1, 4])
def test_a_schedule_is_not_cut_to_nothing(start):
    with pytest.raises(InvalidRequest, match=f"first step is {start}; allowed: 0 to 3"):
        schedule("unipc", 4, 5.0).truncated(start)


@pytest.mark.parametrize("sampler", [name for name in SAMPLERS if name != "renoise"])  # which follows no trajectory
def test_a_constant_velocity_is_integrated_exactly(sampler):
    x0, noise = torch.tensor([0.3, -2.0], dtype=torch.float64), torch.tensor([1.0, 0.5], dtype=torch.float64)
    plan = schedule(sampler, 7, 4.0)
    sigma = plan.sigmas[0]
    state = SamplerState((1 - sigma) * x0 + sigma * noise)
    for i in range(7):
        state = SAMPLERS[sampler](state, noise - x0, plan.sigmas, i)
    torch.testing.assert_close(state.latents, x0, rtol=0, atol=1e-9)


@pytest.mark.parametrize("sampler", SAMPLERS)
def test_a_state_that_went_through_its_tensors_continues_identically(sampler):
    plan = schedule(sampler, 6, 3.0)
    straight = resumed = SamplerState(torch.randn(8, generator=torch.Generator().manual_seed(1)))
    for i in range(6):
        resumed = SamplerState.from_tensors({k: v.clone() for k, v in resumed.tensors().items()})
        straight = SAMPLERS[sampler](straight, toy_velocity(straight.latents, plan.sigmas[i]), plan.sigmas, i)
        resumed = SAMPLERS[sampler](resumed, toy_velocity(resumed.latents, plan.sigmas[i]), plan.sigmas, i)
    assert torch.equal(straight.latents, resumed.latents)


def test_an_unknown_sampler_is_refused_with_the_known_ones():
    with pytest.raises(InvalidRequest, match=r"sampler is 'ddim'; allowed: unipc, euler, dpm\+\+"):
        schedule("ddim", 4, 5.0)
