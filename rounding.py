import torch
from vlltr_index.data.words import number_words
from vlltr_index.heads.anchor_bank import AnchorBank
from vlltr_index.heads.text_prior import TextKernel, class_texts, _LANDMARKS
torch.manual_seed(0)
names=[f"colour{a} thing{b}" for a in range(5) for b in range(6)]
for many in (1,3):
    v=torch.randn(512)
    sents=[]; own=[]
    for c,n in enumerate(names):
        for j in range(many + (c%4 if many>1 else 0)):
            sents.append(f"{'a the one my'.split()[j%4]} {n}"); own.append(c)
    b=AnchorBank.build(v.expand(len(own),512).clone(),torch.tensor(own),torch.arange(len(names)),words=number_words(sents))
    k=TextKernel.of(b)
    print("sentences/class",many,"scale vec",float(k.scale[0]),"scale words",float(k.scale[-1]),
      "share of |b_l|^2 that is rounding of a constant vector:",float(k.landmarks[:,:512].square().sum(1).mean()))
    single=AnchorBank.build(v[None]*1.37,torch.tensor([0]),torch.tensor([0]),words=number_words(["the colour1 thing2"]))
    told=torch.nn.functional.normalize((torch.cat([torch.nn.functional.normalize(single.vectors,dim=1),torch.zeros(1,512)],1)-k.centre)*k.scale,dim=1)
for C in (2048,2049,4096,4097):
    print(C, len(range(C)[:: -(-C // _LANDMARKS)]))
# words block: does a later class of one sentence vs many sentences differ
