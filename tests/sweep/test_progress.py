import io

from rich.console import Console

from mantra_ray.sweep.progress import Display, clock


def plain(interval):
    output = io.StringIO()
    return output, Display(Console(file=output, width=120), interval)


def test_plain_lines_count_trials_and_keep_the_best():
    output, display = plain(0.0)
    with display:
        display.stage(1, 2, "fold seen 0")
        display.begin(3)
        for failed, gain in ((False, 0.05), (True, None), (False, 0.02)):
            display.start()
            display.end(failed, gain)
    lines = output.getvalue().splitlines()
    assert lines[0] == "stages 1/2: fold seen 0"
    assert lines[-1] == "trials 3/3: 0 running, 1 failed, best gain so far +5.0% (validation)"
    assert any("trials 1/3: 1 running" in line and "left" in line for line in lines)


def test_a_slot_that_is_about_to_be_filled_is_not_shown_empty():
    output, display = plain(0.0)
    with display:
        display.begin(4)
        for _ in range(2):
            display.start()
        for _ in range(2):
            display.end(False)
            display.start()
        for _ in range(2):
            display.end(False)
    running = [int(line.split(": ")[1].split()[0]) for line in output.getvalue().splitlines()]
    assert running == [0, 1, 2, 2, 2, 1, 0]


def test_plain_lines_are_periodic():
    output, display = plain(3600.0)
    with display:
        display.begin(50)
        for _ in range(50):
            display.start()
            display.end(False)
    assert len(output.getvalue().splitlines()) == 2  # the first and the last


def test_terminal_shows_bars():
    output = io.StringIO()
    with Display(Console(file=output, force_terminal=True, width=120)) as display:
        display.begin(1)
        display.start()
        display.end(False, 0.1)
    assert "+10.0%" in output.getvalue() and "1/1" in output.getvalue()


def test_clock():
    assert [clock(s) for s in (5.4, 65, 3723)] == ["0:05", "1:05", "1:02:03"]
