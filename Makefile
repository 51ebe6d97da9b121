# coapgw: every target works in a fresh checkout; "make help" lists them.
.POSIX:
.SUFFIXES:
.DELETE_ON_ERROR:
SHELL = /bin/sh

PYTHON ?= python3
PY = .venv/bin/python
RUN_STAMP = .venv/.installed
TEST_STAMP = .venv/.installed-test
UV = uv==0.13.9
# Debian keeps mosquitto in sbin, which is not on everybody's path.
SBIN = PATH="$$PATH:/usr/local/sbin:/usr/sbin:/sbin"

# How long the demo runs.  Only what stands on make's own command line counts: bash calls its clock SECONDS too,
# and make takes any exported variable for a setting.
ifeq ($(origin SECONDS),command line)
DEMO_ARGUMENTS = --seconds '$(SECONDS)'
endif

help:
	@echo 'make install           .venv with everything needed to run: .venv/bin/twistd, .venv/bin/coapgw'
	@echo 'make demo [SECONDS=n]  a gateway, a few devices, and what reaches MQTT; until Ctrl-C or for n seconds'
	@echo 'make test              all checks and tests, and before them everything they need'
	@echo 'make lint              style, types and import contracts'
	@echo 'make unit              the quick tests'
	@echo 'make bench             measure the gateway and its peers (BENCH="--help" lists the options)'
	@echo 'make bench-coaps       the same for CoAP over DTLS'
	@echo 'make bench-cid         the same with and without Connection IDs'
	@echo 'make bench-hostile     devices beside floods'
	@echo 'make bench-scale       a hundred thousand devices: start, memory; what counting costs; NON beside CON'
	@echo 'make chaos             kill, stall and cut everything under load (CHAOS="--help")'
	@echo 'make soak              half an hour of ordinary trouble at half load (SOAK="--minutes 60")'
	@echo 'make lock              write requirements/*.txt anew, from the ranges in setup.cfg and requirements/test.in'
	@echo 'make clean             remove .venv and everything that was built'
	@echo 'The interpreter is python3; another one: make install PYTHON=python3.12'

install: $(RUN_STAMP)

$(RUN_STAMP): requirements/run.txt requirements/venv setup.cfg pyproject.toml
	@PYTHON='$(PYTHON)' requirements/venv
	@touch $@
	@echo 'installed: .venv/bin/twistd and .venv/bin/coapgw'

# A checkout that was moved or copied brought along an environment that points to its old place.
ifneq ($(shell cat .venv/.place 2>/dev/null),$(CURDIR))
$(RUN_STAMP): elsewhere
endif
elsewhere:

$(TEST_STAMP): $(RUN_STAMP) requirements/test.txt
	@$(PY) -m pip --disable-pip-version-check --quiet install --require-hashes -r requirements/test.txt
	@touch $@

demo: install
	@exec $(PY) -m coapgw.cli.demo $(DEMO_ARGUMENTS)

# The tests with processes mostly wait: two at a time, those of a file in a row, for they share what they started.
test: lint prerequisites
	@PYTHON=$(PY) tests/interop/clients/install
	$(PY) -m pytest -q -n auto tests/unit
	$(SBIN) $(PY) -m pytest -q -n 2 --dist loadfile tests/integration tests/interop

prerequisites:
	@tests/prerequisites

lint: $(TEST_STAMP)
	$(PY) -m ruff check .
	$(PY) -m ruff format --check .
	$(PY) -m mypy -p coapgw -p tests
	$(PY) -m mypy bench/*.py requirements/write_run_in.py
	.venv/bin/lint-imports --no-logo

unit: $(TEST_STAMP)
	$(PY) -m pytest -q -n auto tests/unit

bench: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load
	$(SBIN) $(PY) bench/run.py $(BENCH)

bench-coaps: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load
	$(SBIN) $(PY) bench/coaps.py $(BENCH)

bench-hostile: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load
	$(SBIN) $(PY) bench/hostile.py $(BENCH)

bench-scale: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load
	$(SBIN) $(PY) bench/scale.py $(BENCH)

bench-cid: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load all cid
	$(SBIN) $(PY) bench/cid.py $(BENCH)

chaos: $(TEST_STAMP) prerequisites
	$(SBIN) $(PY) -m tests.chaos.run $(CHAOS)

soak: $(TEST_STAMP) prerequisites
	$(MAKE) -C bench/load
	$(SBIN) $(PY) -m tests.chaos.soak $(SOAK)

# --universal: one file for every Python and platform that setup.cfg names.
lock: $(RUN_STAMP)
	test -x .cache/lock/bin/uv || { $(PY) -m venv .cache/lock && .cache/lock/bin/python -m pip install -q $(UV); }
	$(PY) requirements/write_run_in.py
	for set in run test; do \
	    .cache/lock/bin/uv pip compile --quiet --upgrade --universal --generate-hashes --python-version 3.11 \
	        --custom-compile-command 'make lock' --output-file requirements/$$set.txt requirements/$$set.in || exit; \
	done

clean:
	rm -rf .venv .cache build dist bench/build coapgw.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis
	rm -rf .import_linter_cache twisted/plugins/dropin.cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

.PHONY: elsewhere help install demo test prerequisites lint unit bench bench-coaps bench-cid bench-hostile bench-scale chaos soak lock clean
