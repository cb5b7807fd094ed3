def select(v, rows): raise NotImplementedError
def put(v, row, other): raise NotImplementedError
def widen(v, rows): raise NotImplementedError
