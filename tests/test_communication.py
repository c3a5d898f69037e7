"""The cost of an all-reduce: bounds, limits, and a network found again from its own times."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tfopt.train.communication import (
    Network,
    Point,
    fit_network,
    hierarchical_all_reduce,
    ring_all_reduce,
    step_time,
)

latencies, bandwidths = st.floats(1e-6, 1e-1), st.floats(1e6, 1e11)
networks = st.builds(Network, latencies, bandwidths)
sizes, counts = st.floats(0, 1e10), st.integers(1, 1024)
several = st.integers(2, 64)


def messages(workers, network):
    """A ring played through: what each worker waits for, step by step, until all have all sums."""
    known = [{(chunk, worker) for chunk in range(workers)} for worker in range(workers)]
    steps = 0
    for gathers in (False, True):
        for step in range(workers - 1):
            sent = []
            for worker in range(workers):
                chunk = (worker - step + gathers) % workers
                sent.append({pair for pair in known[worker] if pair[0] == chunk})
            for worker in range(workers):
                known[worker] |= sent[worker - 1]
            steps += 1
    assert all(len(each) == workers**2 for each in known)
    return steps


@pytest.mark.parametrize("workers", [1, 2, 3, 4, 7, 8])
def test_a_ring_played_through_takes_as_many_messages(workers):
    network = Network(latency=1.0, bandwidth=1e30)
    assert ring_all_reduce(1.0, workers, network) == pytest.approx(messages(workers, network))


@given(sizes, counts, networks)
@settings(max_examples=80, deadline=None)
def test_a_ring_sends_less_than_twice_the_bytes(size, workers, network):
    alone = 2 * (workers - 1) * network.latency
    on_the_wire = ring_all_reduce(size, workers, network) - alone
    slack = 1e-9 * (alone + size / network.bandwidth)
    assert on_the_wire <= 2 * size / network.bandwidth + slack
    # And from two workers on at least the bytes once.
    if workers > 1:
        assert on_the_wire >= size / network.bandwidth - slack


@given(sizes, counts, networks, st.floats(1.01, 100))
@settings(max_examples=60, deadline=None)
def test_more_latency_and_less_bandwidth_cost_more(size, workers, network, times):
    slow = Network(network.latency * times, network.bandwidth)
    thin = Network(network.latency, network.bandwidth / times)
    before = ring_all_reduce(size, workers, network)
    if workers == 1:
        assert before == ring_all_reduce(size, workers, slow) == 0
        return
    assert ring_all_reduce(size, workers, slow) > before
    assert ring_all_reduce(size, workers, thin) >= before
    assert ring_all_reduce(size + 1e6, workers, network) > before
    assert ring_all_reduce(size, workers + 1, network) > before


@given(sizes, counts, networks, networks)
@settings(max_examples=60, deadline=None)
def test_one_worker_a_host_is_a_ring(size, workers, inside, between):
    assert hierarchical_all_reduce(size, workers, 1, inside, between) == ring_all_reduce(size, workers, between)


@given(sizes, several, st.integers(1, 40), networks, networks)
@settings(max_examples=60, deadline=None)
def test_one_host_never_uses_the_network_between_hosts(size, hosts, per_host, inside, between):
    # Each message doubles at most those who know.
    levels = (per_host - 1).bit_length()
    one = hierarchical_all_reduce(size, per_host, per_host, inside, between)
    assert one == pytest.approx(2 * levels * (inside.latency + size / inside.bandwidth))
    many = hierarchical_all_reduce(size, hosts * per_host, per_host, inside, between)
    assert many == pytest.approx(one + ring_all_reduce(size, hosts, between))


def test_small_messages_go_faster_by_hosts_and_large_ones_in_a_ring():
    network = Network(latency=1e-4, bandwidth=1e9)
    assert hierarchical_all_reduce(1e4, 512, 8, network, network) < ring_all_reduce(1e4, 512, network)
    assert hierarchical_all_reduce(1e9, 512, 8, network, network) > ring_all_reduce(1e9, 512, network)


@given(networks, st.lists(several, min_size=1, max_size=3, unique=True))
@settings(max_examples=60, deadline=None)
def test_a_network_is_found_again_from_its_own_times(network, workers):
    # Sizes around the one where latency and bandwidth cost the same: both show.
    equal = network.latency * network.bandwidth
    points = [
        Point(size, count, ring_all_reduce(size, count, network))
        for count in workers
        for size in (0.1 * equal, equal, 10 * equal)
    ]
    found, errors = fit_network(points)
    assert found.latency == pytest.approx(network.latency, rel=1e-6)
    assert found.bandwidth == pytest.approx(network.bandwidth, rel=1e-6)
    assert np.abs(errors).max() < 1e-6


def test_errors_say_which_point_is_off():
    network = Network(latency=1e-3, bandwidth=1e8)
    points = [Point(size, 2, ring_all_reduce(size, 2, network)) for size in (1e3, 1e4, 1e5, 1e6, 1e7) * 4]
    late = Point(1e5, 2, 2 * ring_all_reduce(1e5, 2, network))
    found, errors = fit_network([*points, late])
    assert int(np.argmin(errors)) == len(points)
    assert errors[-1] == pytest.approx(ring_all_reduce(1e5, 2, found) / late.seconds - 1)
    assert -0.55 < errors[-1] < -0.4
    assert np.abs(errors[:-1]).max() < 0.1


@given(st.floats(0.001, 100), counts, st.integers(1, 64), st.floats(0, 1), st.floats(0, 10))
@settings(max_examples=80, deadline=None)
def test_a_step_is_never_faster_than_its_parts_allow(compute, workers, cores, part, communication):
    fixed = part * compute
    own, shared = (step_time(compute, workers, communication, each, fixed) for each in (None, cores))
    assert own <= shared
    assert own >= compute / workers * (1 - 1e-9) + communication
    assert own >= fixed * (1 - 1e-9)
    if cores >= workers:
        assert own == shared
    # All cores together do no less work than one worker does.
    assert (shared - communication) * cores >= compute * (1 - 1e-9)
    assert step_time(compute, 1, 0.0, cores, fixed) == pytest.approx(compute)


def test_workers_that_share_cores_take_turns():
    times = [step_time(1.2, workers, 0.0, cores=2) for workers in (1, 2, 3, 4)]
    assert times == pytest.approx([1.2, 0.6, 0.8, 0.6])
    assert step_time(1.2, 4, 0.0, cores=2, fixed=0.2) == pytest.approx(2 * (0.2 + 0.25))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: Network(0.0, 1e9), "latency must be a finite number above 0, received 0.0"),
        (lambda: Network(1e-3, math.inf), "bandwidth must be a finite number above 0, received inf"),
        (lambda: Point(1.0, 1, 1.0), "workers must be at least 2 to speak to each other, received 1"),
        (lambda: Point(-1.0, 2, 1.0), "size must be at least 0 bytes, received -1.0"),
        (lambda: Point(1.0, 2, 0.0), "seconds must be a finite number above 0, received 0.0"),
        (lambda: ring_all_reduce(-1, 2, FAST), "size must be at least 0 bytes, received -1"),
        (lambda: ring_all_reduce(1, 0, FAST), "workers must be at least 1, received 0"),
        (lambda: hierarchical_all_reduce(1, 12, 8, FAST, FAST), "a multiple of per_host=8, received 12"),
        (lambda: hierarchical_all_reduce(1, 12, 0, FAST, FAST), "per_host must be at least 1, received 0"),
        (lambda: fit_network([Point(8.0, 2, 1.0)] * 2), "of at least two sizes, received .Point.size=8.0"),
        (lambda: fit_network([Point(1.0, 2, 1.0), Point(1e9, 2, 0.5)]), "no bandwidth above 0: time larger"),
        (lambda: fit_network([Point(1.0, 2, 1e-9), Point(1e3, 2, 1.0)]), "no latency above 0: time smaller"),
        (lambda: step_time(1.0, 0, 0.0), "workers must be at least 1, received 0"),
        (lambda: step_time(1.0, 2, -1.0), "communication must be at least 0 seconds, received -1.0"),
        (lambda: step_time(1.0, 2, 0.0, cores=0), "cores must be at least 1 or None, received 0"),
        (lambda: step_time(1.0, 2, 0.0, fixed=2.0), "fixed must be in .0, compute=1.0., received 2.0"),
    ],
)
def test_what_makes_no_sense_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()


FAST = Network(latency=1e-6, bandwidth=1e10)
