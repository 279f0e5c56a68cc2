# 1) how often does the kernel replace (a) at the null, (b) when the truth is linear in the vectors; what it costs out of sample
import torch, sys
from vlltr_index.heads.text_prior import *
from vlltr_index.heads import text_prior as tp
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.plda import Moments, fit_model, PLDA
def run(C, D, kind, seed, each=10):
    g=torch.Generator().manual_seed(seed)
    N=C+200
    vec=torch.randn(N,D,generator=g)
    words=torch.zeros(N,6,dtype=torch.int16)
    s=torch.randint(1,513,(N,6),generator=g)*(torch.randint(0,2,(N,6),generator=g)*2-1)
    words=s.to(torch.int16)
    unit=torch.nn.functional.normalize(vec,dim=1)*D**.5
    if kind=="null": mu=torch.randn(N,D,generator=g)
    else:
        W=torch.randn(D,D,generator=g)/D**.5
        mu=unit@W+0.7*torch.randn(N,D,generator=g)
    b=AnchorBank.build(vec,torch.arange(N),torch.arange(N),words=words)
    old=b.select(torch.arange(C))
    k=TextKernel.of(old)
    t=class_texts(b,k)
    lab=torch.arange(C).repeat_interleave(each)
    f=mu[lab]+torch.randn(len(lab),D,generator=g)
    m=Moments.of(f[None],lab,torch.arange(len(lab)),C)
    out={}
    for name,kk,tt in (("lin",None,t[:,:D]),("ker",k,t)):
        fm=fit_model(m,tt[:C],kernel=kk)
        T=fm.shared.text_map.shape[0]
        pred=(tt[C:,:T].double()-fm.shared.text_centre)@fm.shared.text_map
        true=(mu[C:].double()-fm.shared.centre)@fm.shared.basis
        e=(true-pred).square().sum(1).mean()/true.square().sum(1).mean()
        out[name]=(float(1-e), fm.shared.text_r2, fm.shared.kernel is not None)
    return out
for kind in ("null","linear"):
    for C,D in ((12,16),(20,16),(40,16),(80,32),(200,32)):
        r=[run(C,D,kind,s) for s in range(60)]
        used=[x["ker"][2] for x in r]
        worse=[x["ker"][0]-x["lin"][0] for x in r if x["ker"][2]]
        rep=[(x["ker"][1],x["ker"][0],x["lin"][1],x["lin"][0]) for x in r if x["ker"][2]]
        mm=torch.tensor(rep).mean(0).tolist() if rep else None
        print(kind,C,D,"kernel used",sum(used)/len(used),"true R2 gained where used",round(sum(worse)/max(1,len(worse)),4),"[claimed r2 ker, true ker, claimed lin, true lin]",mm, flush=True)
