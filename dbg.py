exec(open("mem.py").read().split("for lm in")[0])
tp._RIDGES=(0.01,)
vec=torch.randn(36,8,generator=torch.Generator().manual_seed(1))
b=AnchorBank.build(vec,torch.arange(36),torch.arange(36),words=number_words(names))
k=TextKernel.of(b); t=class_texts(b,k)
cnt=torch.randint(1,9,(36,),generator=g)
lab=torch.arange(36).repeat_interleave(cnt)
f=mu[lab]+.5*torch.randn(len(lab),8,generator=g)
m=Moments.of(f[None],lab,torch.arange(len(lab)),36)
cap=[]
import vlltr_index.heads.plda as pl
orig=tp.fit_text
def spy(*a):
    r=orig(*a); cap.append((a,r)); return r
pl.fit_text=spy
full=fit_model(m,t,kernel=k)
(v,al,seen,w),r=cap[-1]
h=w*((al@torch.linalg.eigh((w[:,None]*al).T@al)[1]).square()@(1/(torch.linalg.eigh((w[:,None]*al).T@al)[0].clamp(min=0)+0.01*torch.linalg.eigh((w[:,None]*al).T@al)[0].sum()/al.shape[1])))+w/w.sum()
print("leverage",h.min(),h.median(),h.max(), "identity", r.text_map[0,0])
for c in (0,5,9,30):
    # exact: refit on the same data without c, same penalty, identity frozen / refitted
    for frozen in (True,False):
        for lev in (True,False):
            v2=w.clone(); v2[c]=0
            x0=(v2[:,None]*al).sum(0)/v2.sum(); 
            vv=v-(v2[:,None]*v).sum(0)/v2.sum(); ss=seen-(v2[:,None]*seen).sum(0)/v2.sum()
            idm=r.text_map[:8] if frozen else tp._multiple(vv,ss,v2)
            y=seen-v@idm; y0=(v2[:,None]*y).sum(0)/v2.sum()
            A=(v2[:,None]*(al-x0)).T@(al-x0)
            A0=(w[:,None]*al).T@al
            lam=0.01*(A0 if lev else A).trace()/len(A)
            B=torch.linalg.solve(A+lam*torch.eye(len(A)).double(),(v2[:,None]*(al-x0)).T@(y-y0))
            pred=v[c]@idm+y0+(al[c]-x0)@B
            print(c,"identity frozen" if frozen else "identity refit","same penalty" if lev else "refit penalty", "residual diff to stored", float((seen[c]-pred-r.residuals[c]).norm()), "of", float(r.residuals[c].norm()))
