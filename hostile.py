import sys, pathlib, shutil, json, hashlib, traceback, time
sys.path.insert(0,"/work/main")
import torch
import importlib.util
src=open("/work/main/tests/recognition/test_text_kernel.py").read()
ns={}
exec(compile("from __future__ import annotations\n"+src.replace("from __future__ import annotations",""),"t","exec"),ns)
from safetensors.torch import load_file, save_file
from vlltr_index.pipelines.fit import fit
from vlltr_index.recognizer import Recognizer
from vlltr_index.classes import add_class
T=pathlib.Path("/work/h/rev2/h"); 
if not (T/"export").exists():
    shutil.rmtree(T,ignore_errors=True); T.mkdir()
    for name in (f"{m} {s}" for m in ns["MANNERS"] for s in ns["SHAPES"]):
        p=T/("new" if name in ns["HELD"] else "photos")/name; p.mkdir(parents=True)
        for n in range(6): ns["shaped"](name,n).save(p/f"{n}.png")
    made=fit(T/"photos",encoder="vlltr-tiny:glyphs")
    r=Recognizer.open(made.workspace)
    print("kernel", r.current().saved.parts.shared.kernel is not None, made.workspace)
    for n in ns["HELD"]: add_class(made.workspace,n,[f"a {n}."])
    r.export(T/"export")
pics=sorted((T/"new").rglob("*.png"))
t0=load_file(T/"export"/"head"/"head.safetensors") if (T/"export"/"head").exists() else None
print([p.relative_to(T/"export").as_posix() for p in (T/"export").rglob("*") if p.is_file()])
f=next((T/"export").rglob("head.safetensors")); t0=load_file(f)
print({k:(tuple(v.shape),v.dtype) for k,v in t0.items() if k.startswith(("kernel","generative"))})
def attack(name, change):
    d=T/"bad"; shutil.rmtree(d,ignore_errors=True); shutil.copytree(T/"export",d)
    t={k:v.clone() for k,v in t0.items()}; change(t)
    g=d/f.relative_to(T/"export"); save_file(t,g)
    # fix digests wherever they are stated
    old=hashlib.sha256(f.read_bytes()).hexdigest(); new=hashlib.sha256(g.read_bytes()).hexdigest()
    for j in d.rglob("*"):
        if j.is_file() and j.suffix!=".safetensors":
            b=j.read_bytes()
            if old.encode() in b: j.write_bytes(b.replace(old.encode(),new.encode()))
    from tests.support.exports import sign; sign(d)
    try:
        p=Recognizer.from_pretrained(d).predict_proba(pics[:2]); print(name,"-> answers, nan:",bool((p!=p).any()))
    except Exception as e: print(name,"->",type(e).__name__,str(e)[:150])
def s(k,v): return lambda t: t.__setitem__(k,v(t[k]) if callable(v) else v)
attack("same",lambda t:None)
attack("0-d landmarks", s("kernel.landmarks",torch.tensor(1.0)))
attack("empty landmarks", s("kernel.landmarks",torch.zeros(0,3)))
attack("nan scale", s("kernel.scale",lambda v:v*float("nan")))
attack("huge scale", s("kernel.scale",lambda v:torch.full_like(v,3e38)))
attack("huge landmarks", s("kernel.landmarks",lambda v:v*1e5))
attack("f64 landmarks", s("kernel.landmarks",lambda v:v.double()))
attack("f16 landmarks", s("kernel.landmarks",lambda v:v.half()))
attack("int landmarks", s("kernel.landmarks",lambda v:v.long()))
attack("bool scale", s("kernel.scale",lambda v:v.bool()))
attack("no centre", lambda t:t.pop("kernel.centre"))
attack("no kernel", lambda t:[t.pop(k) for k in list(t) if k.startswith("kernel.")])
attack("huge shifts", s("generative.shifts",lambda v:torch.full_like(v,3e38)))
attack("0-d shifts", s("generative.shifts",torch.tensor(1.0)))
attack("huge text_map", s("generative.text_map",lambda v:torch.full_like(v,3e38)))
def norows(t):
    n=len(t["class_ids"]); t["class_ids"]=t["class_ids"][:0]; t["generative.shifts"]=t["generative.shifts"][:0]
    for k in list(t):
        if k.startswith("head.") and t[k].ndim and t[k].shape[0]==n: t[k]=t[k][:0]
        if k.startswith("held_out"): t.pop(k)
attack("no rows", norows)
def nr2(t): norows(t); t.pop("generative.shifts")
attack("no rows no shifts", nr2)
def noshifts(t): t.pop("generative.shifts")
attack("kernel without shifts", noshifts)
