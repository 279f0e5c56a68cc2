# LOO exactness incl. zero-weight classes when moments lack classes, repeated landmarks, >2048 path (patched to 8), vs refits of fit_model
import torch
from vlltr_index.heads import text_prior as tp
from vlltr_index.heads.text_prior import *
from vlltr_index.heads.plda import fit_model, Moments
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
names=[f"colour{a} thing{b}" for a in range(6) for b in range(6)]
names[7]=names[6]; names[20]=names[6]   # repeated texts
g=torch.Generator().manual_seed(3)
A,B=torch.randn(6,8,generator=g),torch.randn(6,8,generator=g)
mu=(A[:,None]+B[None]).flatten(0,1); mu[7]=mu[6]; mu[20]=mu[6]
for lm in (2048,8):
    tp._LANDMARKS=lm
    vec=torch.randn(36,8,generator=torch.Generator().manual_seed(1))
    b=AnchorBank.build(vec,torch.arange(36),torch.arange(36),words=number_words(names))
    k=TextKernel.of(b); t=class_texts(b,k)
    t[11]=0  # one class without text
    cnt=torch.randint(1,9,(36,),generator=g); cnt[3]=0
    lab=torch.arange(36).repeat_interleave(cnt)
    f=mu[lab]+.5*torch.randn(len(lab),8,generator=g)
    m=Moments.of(f[None],lab,torch.arange(len(lab)),36)
    full=fit_model(m,t,kernel=k)
    print("L",len(k.landmarks),"root",k.root.shape,"r2",full.shared.text_r2,"kernel",full.shared.kernel is not None, "shifts finite", None if full.shifts is None else bool(full.shifts.isfinite().all()), "shift of class 3,11:", None if full.shifts is None else (float(full.shifts[3].norm()),float(full.shifts[11].norm())))
    if full.shifts is None: continue
    x=lambda M,pr: M.shared.centre+pr@torch.linalg.inv(M.shared.basis)
    s_all=[];d=[];d0=[]
    for c in range(36):
        if c in(3,11): continue
        cc=m.counts.clone(); ss=m.sums.clone(); cc[c]=0; ss[c]=0
        w=fit_model(Moments(cc,ss,m.within,m.sampling,m.freedom),t,kernel=k)
        if w.shared.kernel is None: print("refit without",c,"has no kernel"); continue
        target=x(w,((t[c].double()-w.shared.text_centre)@w.shared.text_map))
        ful=x(full,((t[c].double()-full.shared.text_centre)@full.shared.text_map))
        sh=x(full,((t[c].double()-full.shared.text_centre)@full.shared.text_map)+full.shifts[c])
        d.append(float((sh-target).norm())); d0.append(float((ful-target).norm()))
    print("mean distance to true refit: with shift",sum(d)/len(d)," without",sum(d0)/len(d0))
