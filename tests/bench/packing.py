def run(trace): pass
